"""A TCP connection to a process of the same host that stays."""
# answer: refused peer_stays_behind

import socket

from .life import live, sleep_on, stranger

listener = socket.create_server(("127.0.0.1", 5121))


def accept() -> None:
    _far, _ = listener.accept()
    listener.close()
    near.close()
    sleep_on()


near = socket.socket()
stranger(accept)
near.connect(("127.0.0.1", 5121))
listener.close()
live()
