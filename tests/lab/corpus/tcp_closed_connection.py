"""A TCP socket whose connection the other end has reset."""
# answer: moves

import socket
import struct

from .life import live

listener = socket.create_server(("127.0.0.1", 5123))
near = socket.create_connection(("127.0.0.1", 5123))
far, _ = listener.accept()
far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
far.close()
live()
