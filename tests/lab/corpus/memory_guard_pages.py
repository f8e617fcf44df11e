"""Guard pages that take no mapping of their own (MADV_GUARD_INSTALL)."""
# answer: moves

import ctypes

from .life import C, live, mmap, ok

address = mmap(4096 * 16)
ctypes.memset(address, 1, 4096 * 16)
ok(C.madvise(ctypes.c_void_p(address + 4096 * 4), ctypes.c_size_t(4096), 102))


def well() -> None:
    assert ctypes.string_at(address + 4096 * 5, 2) == b"\1\1"


live(well)
