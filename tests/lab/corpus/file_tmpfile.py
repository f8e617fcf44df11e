"""A file that never had a name."""
# answer: moves

import os

from .life import live

number = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
os.write(number, b"content")


def well() -> None:
    assert os.pread(number, 9, 0) == b"content"


live(well)
