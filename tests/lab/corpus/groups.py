"""A process with groups."""
# answer: moves

import os

from .life import live

os.setgroups([5, 7])


def well() -> None:
    assert sorted(os.getgroups()) == [5, 7]


live(well)
