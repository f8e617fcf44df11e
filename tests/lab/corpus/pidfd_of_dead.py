"""A pidfd of a process that has ended."""
# answer: moves

import os
import select

from .life import child, live

pid = child(lambda: None)
number = os.pidfd_open(pid)
os.waitpid(pid, 0)


def well() -> None:
    assert select.select([number], [], [], 0)[0]


live(well)
