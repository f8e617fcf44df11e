"""A Unix connection within the tree that was not accepted yet, and has brought nothing."""
# answer: refused unaccepted_unix_connections

import socket

from .life import live

PATH = "/run/unix-unaccepted-empty"
listener = socket.socket(socket.AF_UNIX)
listener.bind(PATH)
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect(PATH)
live()
