"""A filter of system calls."""
# answer: moves

import ctypes
import struct

from .life import C, live, ok

code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))  # allow all
program = struct.pack("H6xQ", 1, ctypes.addressof(code))
ok(C.prctl(38, 1, 0, 0, 0))
ok(C.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0))


def well() -> None:
    with open("/proc/self/status") as status:
        assert "Seccomp:\t2" in status.read()


live(well)
