"""A descriptor that was sent over a Unix socket and not yet received."""
# answer: moves

import os
import socket

from .life import live

near, far = socket.socketpair()
reader, writer = os.pipe()
socket.send_fds(near, [b"x"], [reader])
os.write(writer, b"y")


def well() -> None:
    _data, (received,), *_ = socket.recv_fds(far, 1, 1)
    assert os.read(received, 1) == b"y"
    os.write(writer, b"y")
    socket.send_fds(near, [b"x"], [received])
    os.close(received)


live(well)
