"""A raw socket, as ping has it."""
# answer: moves

import socket

from .life import live

raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
live()
