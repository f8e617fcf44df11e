"""A Unix listener that was bound by a relative path in a directory that it has left since."""
# answer: moves

import os
import socket

from .life import live

os.chdir("/run")
listener = socket.socket(socket.AF_UNIX)
listener.bind("unix-relative-elsewhere")
listener.listen()
os.chdir("/")


def well() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/unix-relative-elsewhere")
        listener.accept()[0].close()


live(well)
