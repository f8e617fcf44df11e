"""A TCP listener that a process which stays has too."""
# answer: moves

import socket

from .life import live, stranger

listener = socket.create_server(("0.0.0.0", 5122))
stranger()
live()
