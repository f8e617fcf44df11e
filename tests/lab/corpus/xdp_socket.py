"""A socket of XDP."""
# answer: refused socket_kind

import socket

from .life import live

fast = socket.socket(44, socket.SOCK_RAW, 0)
live()
