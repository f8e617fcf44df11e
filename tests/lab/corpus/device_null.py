"""The devices that are everywhere, and one of them mapped."""
# answer: moves

import mmap
import os

from .life import live

numbers = [os.open(f"/dev/{name}", os.O_RDWR) for name in ("null", "zero", "full", "urandom")]
mapped = mmap.mmap(numbers[1], 4096)
mapped[:5] = b"hello"


def well() -> None:
    assert mapped[:5] == b"hello"
    assert len(os.read(numbers[3], 9)) == 9


live(well)
