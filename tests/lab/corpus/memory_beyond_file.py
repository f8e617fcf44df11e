"""A mapping that is longer than its file."""
# answer: moves
# both: printf x >/tmp/memory-beyond-file

import ctypes
import os

from .life import live, mmap

number = os.open("/tmp/memory-beyond-file", os.O_RDWR)
address = mmap(4096 * 8, flags=2, descriptor=number)
ctypes.memset(address, 7, 10)


def well() -> None:
    assert ctypes.string_at(address, 2) == b"\7\7"


live(well)
