"""A small file without a name, on the overlay that a host of the lab has as its root."""
# answer: moves

import os

from .life import live

number = os.open("/srv/file-deleted", os.O_CREAT | os.O_RDWR)
os.write(number, b"content")
os.unlink("/srv/file-deleted")


def well() -> None:
    assert os.pread(number, 9, 0) == b"content"


live(well)
