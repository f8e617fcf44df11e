"""A process that shares its descriptors with one that stays."""
# answer: moves

import os

from .life import C, live, syscall

middle = syscall(56, 0x400 | 17, 0, 0, 0, 0)
if middle == 0:
    if syscall(56, 0x400 | 17, 0, 0, 0, 0) == 0:
        os.setsid()
        while True:
            C.pause()
    os._exit(0)
os.waitpid(middle, 0)
live()
