"""System V shared memory."""
# answer: refused sysv_shared_memory

import ctypes

from .life import C, live, ok

number = ok(C.shmget(0, 65536, 0o1600))
C.shmat.restype = ctypes.c_void_p
C.shmat(number, None, 0)
live()
