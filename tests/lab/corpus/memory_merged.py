"""Memory in which equal pages are merged."""
# answer: moves

import ctypes

from .life import C, live, mmap, ok

address = mmap(65536)
ctypes.memset(address, 7, 65536)
ok(C.madvise(ctypes.c_void_p(address), ctypes.c_size_t(65536), 12))


def well() -> None:
    assert ctypes.string_at(address, 2) == b"\7\7"


live(well)
