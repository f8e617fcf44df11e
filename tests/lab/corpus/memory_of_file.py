"""A private mapping of a file, changed."""
# answer: moves
# both: dd if=/dev/zero of=/tmp/memory-of-file bs=1M count=4 status=none

import mmap
import os

from .life import live

number = os.open("/tmp/memory-of-file", os.O_RDWR)
mapped = mmap.mmap(number, 4 << 20, flags=mmap.MAP_PRIVATE)
mapped[:5] = b"hello"
os.close(number)


def well() -> None:
    assert mapped[:6] == b"hello\0"


live(well)
