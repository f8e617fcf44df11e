"""Rules of Landlock that are not in force yet."""
# answer: refused descriptor_kind

import ctypes
import struct

from .life import live, syscall

syscall(444, ctypes.create_string_buffer(struct.pack("Q", 1 << 12)), 8, 0)
live()
