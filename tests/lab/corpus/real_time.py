"""A real-time priority."""
# answer: moves

import os

from .life import live

os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def well() -> None:
    assert os.sched_getscheduler(0) == os.SCHED_RR


live(well)
