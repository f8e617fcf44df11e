"""A named pipe."""
# answer: moves
# both: mkfifo /run/corpus-fifo

import os

from .life import live

number = os.open("/run/corpus-fifo", os.O_RDWR)
os.write(number, b"x")


def well() -> None:
    assert os.read(number, 1) == b"x"
    os.write(number, b"x")


live(well)
