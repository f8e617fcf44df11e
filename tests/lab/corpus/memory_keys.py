"""Memory with a protection key."""
# answer: moves

import ctypes

from .life import C, live, missing, mmap, ok

address = mmap(4096)
try:
    key = ok(C.pkey_alloc(0, 0))
except OSError:
    missing("these processors have no protection keys")
ok(C.pkey_mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 3, key))


def well() -> None:
    ctypes.memset(address, 1, 10)


live(well)
