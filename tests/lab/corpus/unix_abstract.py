"""A Unix listener with an abstract name."""
# answer: moves

import socket

from .life import live

listener = socket.socket(socket.AF_UNIX)
listener.bind("\0corpus-unix-abstract")
listener.listen()


def well() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0corpus-unix-abstract")
        listener.accept()[0].close()


live(well)
