"""A mapping that grows down."""
# answer: moves

import ctypes

from .life import live, mmap

address = mmap(65536, flags=0x122)
ctypes.memset(address, 1, 65536)


def well() -> None:
    assert ctypes.string_at(address, 2) == b"\1\1"


live(well)
