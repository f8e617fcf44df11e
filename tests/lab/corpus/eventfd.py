"""An eventfd with a count in it."""
# answer: moves

import os

from .life import live

number = os.eventfd(7)


def well() -> None:
    assert os.eventfd_read(number) == 7
    os.eventfd_write(number, 7)


live(well)
