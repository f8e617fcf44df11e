"""A signalfd, and a signal that waits to be read from it."""
# answer: moves

import ctypes
import os
import signal
import struct

from .life import C, live, ok

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
mask = ctypes.create_string_buffer(struct.pack("Q", 1 << signal.SIGUSR1 - 1), 128)
number = ok(C.signalfd(-1, mask, 0))
os.kill(os.getpid(), signal.SIGUSR1)


def well() -> None:
    assert os.read(number, 128)[0] == signal.SIGUSR1
    os.kill(os.getpid(), signal.SIGUSR1)


live(well)
