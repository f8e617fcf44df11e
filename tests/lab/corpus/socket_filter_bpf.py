"""A socket with a filter of eBPF."""
# answer: refused socket_filter

import ctypes
import os
import socket
import struct

from .life import live, syscall

code = ctypes.create_string_buffer(struct.pack("<BBhi", 0xB7, 0, 0, 0xFFFF) + struct.pack("<BBhi", 0x95, 0, 0, 0))
licence = ctypes.create_string_buffer(b"GPL")
attributes = struct.pack("IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(licence))
number = syscall(321, 5, ctypes.create_string_buffer(attributes, 128), 128)
bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
bound.setsockopt(socket.SOL_SOCKET, 50, number)
os.close(number)
live()
