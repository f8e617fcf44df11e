"""A small file without a name."""
# answer: moves

import os

from .life import live

number = os.open("/tmp/file-deleted", os.O_CREAT | os.O_RDWR)
os.write(number, b"content")
os.unlink("/tmp/file-deleted")


def well() -> None:
    assert os.pread(number, 9, 0) == b"content"


live(well)
