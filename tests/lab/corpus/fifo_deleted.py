"""A named pipe whose name was removed."""
# answer: moves

import os

from .life import live

os.mkfifo("/run/corpus-fifo-deleted")
number = os.open("/run/corpus-fifo-deleted", os.O_RDWR)
os.unlink("/run/corpus-fifo-deleted")
os.write(number, b"x")


def well() -> None:
    assert os.read(number, 1) == b"x"
    os.write(number, b"x")


live(well)
