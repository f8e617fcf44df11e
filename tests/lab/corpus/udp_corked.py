"""A UDP socket that collects what it will send."""
# answer: refused unsent_messages

import socket

from .life import live

bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
bound.connect(("127.0.0.1", 5125))
bound.setsockopt(socket.IPPROTO_UDP, 1, 1)
bound.send(b"x")
live()
