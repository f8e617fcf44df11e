"""Niceness, a real-time policy and processors of its own."""
# answer: moves

import os

from .life import live

os.nice(5)
os.sched_setaffinity(0, {0})


def well() -> None:
    assert os.nice(0) == 5


live(well)
