"""A process that shares memory and signal handlers with its parent."""
# answer: refused shared_between_processes

import ctypes

from .life import C, live, mmap

WAIT = ctypes.cast(C.pause, ctypes.c_void_p)
C.clone(WAIT, ctypes.c_void_p(mmap(65536) + 65536), 0x900 | 17, None)  # CLONE_VM | CLONE_SIGHAND
live()
