"""A UDP-Lite socket."""
# answer: moves

import socket

from .life import live

bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
bound.bind(("0.0.0.0", 5102))
live()
