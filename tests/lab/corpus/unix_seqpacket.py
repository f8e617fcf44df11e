"""A pair of Unix sockets that keep messages apart."""
# answer: moves

import socket

from .life import live

near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
near.send(b"one")
near.send(b"two")


def well() -> None:
    assert far.recv(9) == b"one"
    assert far.recv(9) == b"two"
    near.send(b"one")
    near.send(b"two")


live(well)
