"""A process that a debugger holds."""
# answer: refused traced

import os
import time

from .life import C, live, sleep_on, stranger

parent = os.getpid()
C.prctl(0x59616D61, -1, 0, 0, 0)


def trace() -> None:
    time.sleep(0.3)
    C.ptrace(0x4206, parent, None, None)  # PTRACE_SEIZE
    sleep_on()


stranger(trace)
time.sleep(0.6)
live()
