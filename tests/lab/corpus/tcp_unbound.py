"""Sockets that nothing was done with yet."""
# answer: moves

import socket

from .life import live

held = [socket.socket(family, kind) for family in (socket.AF_INET, socket.AF_INET6) for kind in (1, 2)]
live()
