"""A filter that lets fail what CRIU has a process do: ptrace, mmap, memfd_create and more."""
# answer: moves

import ctypes
import struct

from .life import C, live, ok

refused = [9, 10, 11, 25, 101, 157, 218, 273, 319, 234]
code = struct.pack("HBBI", 0x20, 0, 0, 0)
for position, number in enumerate(refused):
    code += struct.pack("HBBI", 0x15, len(refused) - position, 0, number)
code += struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000) + struct.pack("HBBI", 0x06, 0, 0, 0x00050001)
held = ctypes.create_string_buffer(code)
program = struct.pack("H6xQ", len(code) // 8, ctypes.addressof(held))
ok(C.prctl(38, 1, 0, 0, 0))
ok(C.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0))
live()
