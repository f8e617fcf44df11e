"""A socket of generic netlink."""
# answer: moves

import socket

from .life import live

asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
asking.bind((0, 0))
live()
