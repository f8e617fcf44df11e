"""A netlink socket that hears of each change of addresses."""
# answer: moves

import socket

from .life import live

asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
asking.bind((0, 0x10 | 1))
live()
