"""A Unix socket that tells who sent what, with such a message under way."""
# answer: refused unread_messages

import socket

from .life import live

near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
far.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
near.send(b"x")


def well() -> None:
    data, ancillary, *_ = far.recvmsg(9, 100)
    assert data == b"x"
    assert ancillary
    near.send(b"x")


live(well)
