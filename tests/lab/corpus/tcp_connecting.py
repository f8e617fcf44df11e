"""A TCP connection that is not answered."""
# answer: refused connection_address_missing

import socket

from .life import live

near = socket.socket()
near.setblocking(False)
near.connect_ex(("10.77.0.222", 5118))
live()
