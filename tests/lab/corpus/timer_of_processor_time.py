"""A timer on the processor time that the process has used."""
# answer: moves

import ctypes
import signal
import struct

from .life import going_on, live, syscall

count = 0


def ring(*_: object) -> None:
    global count
    count += 1


signal.signal(signal.SIGUSR1, ring)
timer = ctypes.c_int()
syscall(222, 2, ctypes.create_string_buffer(struct.pack("Qii", 0, signal.SIGUSR1, 0), 64), ctypes.byref(timer))
syscall(223, timer.value, 0, ctypes.create_string_buffer(struct.pack("qqqq", 0, 10**6, 0, 10**6)), None)


def worked() -> int:
    for _ in range(100000):
        pass
    return count


live(going_on(worked))
