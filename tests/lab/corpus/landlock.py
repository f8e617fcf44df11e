"""A sandbox of Landlock. It is open afterwards; nobody outside can see it."""
# answer: moves

import ctypes
import os
import struct

from .life import C, live, ok, syscall

rules = syscall(444, ctypes.create_string_buffer(struct.pack("Q", 1 << 12)), 8, 0)  # may make no symbolic link
ok(C.prctl(38, 1, 0, 0, 0))
syscall(446, rules, 0)
os.close(rules)
live()
