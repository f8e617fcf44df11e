"""A process whose system calls come back to it as signals (PR_SET_SYSCALL_USER_DISPATCH), as Wine has it."""
# answer: moves

import ctypes

from .life import C, live, ok

allowed = ctypes.c_char(0)
ok(C.prctl(59, 1, ctypes.c_ulong(0), ctypes.c_ulong(1 << 47), ctypes.byref(allowed)))
live()
