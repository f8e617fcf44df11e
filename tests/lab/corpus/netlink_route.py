"""A netlink socket that asks for routes."""
# answer: moves

import socket

from .life import live

asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
asking.bind((0, 0))
live()
