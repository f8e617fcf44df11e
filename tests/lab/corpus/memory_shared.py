"""Shared memory without a name between parent and child."""
# answer: moves

import mmap

from .life import child, live

mapped = mmap.mmap(-1, 1 << 20)
mapped[:5] = b"hello"


def fill() -> None:
    import time

    while True:
        mapped[5] = (mapped[5] + 1) % 256
        time.sleep(0.001)


child(fill)


def well() -> None:
    assert mapped[:5] == b"hello"


live(well)
