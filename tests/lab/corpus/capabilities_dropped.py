"""A process without privileges."""
# answer: moves

import ctypes
import struct

from .life import C, live, ok

ok(C.prctl(24, 12, 0, 0, 0))
ok(C.capset(ctypes.create_string_buffer(struct.pack("II", 0x20080522, 0)), ctypes.create_string_buffer(24)))


def well() -> None:
    with open("/proc/self/status") as status:
        assert "CapEff:\t0000000000000000" in status.read()


live(well)
