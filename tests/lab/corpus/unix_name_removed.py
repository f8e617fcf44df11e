"""A Unix listener whose name was removed."""
# answer: moves

import os
import socket

from .life import live

listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/unix-name-removed")
listener.listen()
os.unlink("/run/unix-name-removed")
live()
