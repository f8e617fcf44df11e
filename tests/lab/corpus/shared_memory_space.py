"""A process that shares all its memory with its parent without being a thread."""
# answer: refused shared_between_processes

import ctypes

from .life import C, live, mmap

WAIT = ctypes.cast(C.pause, ctypes.c_void_p)
C.clone(WAIT, ctypes.c_void_p(mmap(65536) + 65536), 0x100 | 17, None)  # CLONE_VM
live()
