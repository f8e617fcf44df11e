"""A file without a name, mapped and closed."""
# answer: moves

import mmap
import os

from .life import live

number = os.open("/tmp/file-deleted-mapped", os.O_CREAT | os.O_RDWR)
os.write(number, b"content" * 1000)
mapped = mmap.mmap(number, 7000)
os.close(number)
os.unlink("/tmp/file-deleted-mapped")


def well() -> None:
    assert mapped[6993:] == b"content"


live(well)
