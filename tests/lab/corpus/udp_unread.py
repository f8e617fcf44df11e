"""A UDP socket with a packet that was not read."""
# answer: moves

import socket

from .life import live

bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
bound.bind(("127.0.0.1", 5126))
bound.sendto(b"x", ("127.0.0.1", 5126))
live()
