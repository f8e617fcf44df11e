"""System V semaphores, with an undo."""
# answer: refused sysv_semaphores

import ctypes
import struct

from .life import C, live, ok

number = ok(C.semget(0, 1, 0o1600))
ok(C.semop(number, ctypes.create_string_buffer(struct.pack("Hhh", 0, 1, 0x1000)), 1))


def well() -> None:
    assert ok(C.semctl(number, 0, 12)) == 1  # GETVAL


live(well)
