"""Memory that was made by mapping /dev/zero privately."""
# answer: moves

import mmap
import os

from .life import live

number = os.open("/dev/zero", os.O_RDWR)
mapped = mmap.mmap(number, 8192, flags=mmap.MAP_PRIVATE)
mapped[:5] = b"hello"
os.close(number)


def well() -> None:
    assert mapped[:5] == b"hello"


live(well)
