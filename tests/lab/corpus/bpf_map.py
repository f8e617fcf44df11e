"""A map of eBPF."""
# answer: refused descriptor_kind

import ctypes
import struct

from .life import live, syscall

attributes = ctypes.create_string_buffer(struct.pack("IIIII", 2, 4, 4, 1, 0), 128)  # BPF_MAP_TYPE_ARRAY
syscall(321, 0, attributes, 128)
live()
