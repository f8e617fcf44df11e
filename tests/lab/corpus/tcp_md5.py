"""A TCP listener with a password for its packets, as BGP has it."""
# answer: moves

import socket
import struct

from .life import live

listener = socket.create_server(("127.0.0.1", 5124))
peer = struct.pack("HH4s120x", 2, 0, bytes([127, 0, 0, 1])) + struct.pack("BBHI80s", 0, 0, 3, 0, b"key")
listener.setsockopt(socket.IPPROTO_TCP, 14, peer)
live()
