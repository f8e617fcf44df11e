"""A TCP listener."""
# answer: moves

import socket

from .life import live

listener = socket.create_server(("0.0.0.0", 5110))


def well() -> None:
    with socket.create_connection(("127.0.0.1", 5110)):
        listener.accept()[0].close()


live(well)
