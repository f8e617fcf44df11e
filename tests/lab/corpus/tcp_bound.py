"""A TCP socket that has a port and does nothing with it."""
# answer: moves

import socket

from .life import live

bound = socket.socket()
bound.bind(("0.0.0.0", 5120))
live()
