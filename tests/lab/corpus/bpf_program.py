"""A loaded program of eBPF."""
# answer: refused descriptor_kind

import ctypes
import struct

from .life import live, syscall

code = ctypes.create_string_buffer(struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0))
licence = ctypes.create_string_buffer(b"GPL")
attributes = struct.pack("IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(licence))  # a socket filter
syscall(321, 5, ctypes.create_string_buffer(attributes, 128), 128)
live()
