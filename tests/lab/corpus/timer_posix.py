"""A timer of POSIX that signals the process."""
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
syscall(222, 1, ctypes.create_string_buffer(struct.pack("Qii", 0, signal.SIGUSR1, 0), 64), ctypes.byref(timer))
syscall(223, timer.value, 0, ctypes.create_string_buffer(struct.pack("qqqq", 0, 10**7, 0, 10**7)), None)
live(going_on(lambda: count))
