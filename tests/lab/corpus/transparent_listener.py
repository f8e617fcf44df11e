"""A listener on an address that the host does not have (IP_FREEBIND)."""
# answer: refused connection_address_missing

import socket

from .life import live

listener = socket.socket()
listener.setsockopt(socket.IPPROTO_IP, 15, 1)
listener.bind(("192.0.2.77", 5131))
listener.listen()
live()
