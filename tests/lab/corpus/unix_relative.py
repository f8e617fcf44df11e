"""A Unix listener that was bound by a relative path."""
# answer: moves

import os
import socket

from .life import live

os.chdir("/run")
listener = socket.socket(socket.AF_UNIX)
listener.bind("unix-relative")
listener.listen()


def well() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/unix-relative")
        listener.accept()[0].close()


live(well)
