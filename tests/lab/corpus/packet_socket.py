"""A packet socket, as DHCP clients and packet sniffers have it."""
# answer: moves

import socket

from .life import live

sniffing = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
live()
