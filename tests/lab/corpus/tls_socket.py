"""A TCP connection whose TLS the kernel does."""
# answer: refused socket_kind

import socket

from .life import live, missing

listener = socket.create_server(("127.0.0.1", 5103))
near = socket.create_connection(("127.0.0.1", 5103))
far, _ = listener.accept()
try:
    near.setsockopt(socket.IPPROTO_TCP, 31, b"tls")
except OSError:
    missing("this kernel has no TLS (CONFIG_TLS)")
live()
