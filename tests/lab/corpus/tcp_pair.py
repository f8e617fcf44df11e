"""Both ends of a TCP connection, with data under way."""
# answer: moves

import socket

from .life import live

listener = socket.create_server(("127.0.0.1", 5116))
near = socket.create_connection(("127.0.0.1", 5116))
far, _ = listener.accept()
near.send(b"hello")


def well() -> None:
    assert far.recv(9) == b"hello"
    near.send(b"hello")


live(well)
