"""A packet socket on a device."""
# answer: moves

import socket

from .life import live

sniffing = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
sniffing.bind(("lo", 0x88B5))
live()
