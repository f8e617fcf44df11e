"""A System V message queue with a message."""
# answer: refused sysv_messages

import ctypes
import struct

from .life import C, live, ok

number = ok(C.msgget(0, 0o1600))
ok(C.msgsnd(number, ctypes.create_string_buffer(struct.pack("l", 1) + b"hello"), 5, 0))
received = ctypes.create_string_buffer(64)


def well() -> None:
    assert ok(C.msgrcv(number, received, 56, 1, 0)) == 5
    ok(C.msgsnd(number, received, 5, 0))


live(well)
