"""A POSIX message queue."""
# answer: refused mount_gone

import ctypes
import os

from .life import C, live, ok

C.mq_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
ok(C.mq_open(b"/corpus", os.O_CREAT | os.O_RDWR, 0o600, None))
live()
