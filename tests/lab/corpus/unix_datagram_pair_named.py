"""Two datagram sockets with names, one of which sends to the other."""
# answer: moves

import socket

from .life import live

to, by = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.bind("/run/unix-datagram-to")
by.bind("/run/unix-datagram-by")
by.connect("/run/unix-datagram-to")
by.send(b"hello")


def well() -> None:
    assert to.recvfrom(9) == (b"hello", "/run/unix-datagram-by")
    by.send(b"hello")


live(well)
