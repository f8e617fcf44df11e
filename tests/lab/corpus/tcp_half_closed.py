"""A TCP connection that one end has closed for sending."""
# answer: moves

import socket

from .life import live

listener = socket.create_server(("127.0.0.1", 5117))
near = socket.create_connection(("127.0.0.1", 5117))
far, _ = listener.accept()
near.shutdown(socket.SHUT_WR)


def well() -> None:
    assert far.recv(9) == b""
    far.send(b"x")
    assert near.recv(9) == b"x"


live(well)
