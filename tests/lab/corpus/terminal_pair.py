"""Both ends of a terminal."""
# answer: moves

import os

from .life import live

master, slave = os.openpty()
os.write(slave, b"x")


def well() -> None:
    assert os.read(master, 9) == b"x"
    os.write(slave, b"x")


live(well)
