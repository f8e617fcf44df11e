"""The descriptor by which one process decides over another one's system calls."""
# answer: refused descriptor_kind

import ctypes
import struct

from .life import C, live, ok, syscall

code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
program = struct.pack("H6xQ", 1, ctypes.addressof(code))
ok(C.prctl(38, 1, 0, 0, 0))
syscall(317, 1, 8, ctypes.create_string_buffer(program))  # SECCOMP_FILTER_FLAG_NEW_LISTENER
live()
