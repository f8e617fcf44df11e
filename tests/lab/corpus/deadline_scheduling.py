"""A time slice that the kernel guarantees."""
# answer: refused scheduling_policy

import ctypes
import struct

from .life import live, syscall

syscall(314, 0, ctypes.create_string_buffer(struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**7, 10**8, 10**8)), 0)
live()
