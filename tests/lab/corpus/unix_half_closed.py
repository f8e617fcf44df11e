"""A Unix connection whose other end is closed."""
# answer: moves

import socket

from .life import live

near, far = socket.socketpair()
far.send(b"bye")
far.close()
live()
