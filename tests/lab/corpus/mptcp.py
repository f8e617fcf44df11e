"""A Multipath TCP socket, which Go's listeners are by default."""
# answer: refused mptcp_socket

import socket

from .life import live

listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
listener.bind(("0.0.0.0", 5101))
listener.listen()
live()
