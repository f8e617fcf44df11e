"""A TCP connection within the tree that was not accepted yet."""
# answer: refused peer_stays_behind unaccepted_connections

import socket

from .life import live

listener = socket.create_server(("127.0.0.1", 5119))
near = socket.create_connection(("127.0.0.1", 5119))
live()
