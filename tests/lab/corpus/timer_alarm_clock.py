"""A timer that would wake the machine up."""
# answer: moves

import ctypes
import signal
import struct

from .life import live, missing, syscall

signal.signal(signal.SIGUSR1, signal.SIG_IGN)
timer = ctypes.c_int()
try:
    syscall(222, 8, ctypes.create_string_buffer(struct.pack("Qii", 0, signal.SIGUSR1, 0), 64), ctypes.byref(timer))
except OSError:
    missing("this machine has no clock that could wake it up")
syscall(223, timer.value, 0, ctypes.create_string_buffer(struct.pack("qqqq", 0, 10**7, 0, 10**7)), None)
live()
