"""A Unix connection within the tree that was not accepted yet."""
# answer: refused unaccepted_unix_connections

import socket

from .life import live

PATH = "/run/unix-unaccepted"
listener = socket.socket(socket.AF_UNIX)
listener.bind(PATH)
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect(PATH)
client.send(b"hello")
live()
