"""A pair of Unix sockets with data under way."""
# answer: moves

import socket

from .life import live

near, far = socket.socketpair()
near.send(b"hello")


def well() -> None:
    assert far.recv(5) == b"hello"
    near.send(b"hello")


live(well)
