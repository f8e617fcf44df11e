"""A child in a process group whose leader has ended."""
# answer: moves

import os

from .life import C, child, live, ok, sleep_on


def lead() -> None:
    os.setpgid(0, 0)
    child_of_group = os.fork()
    if child_of_group == 0:
        sleep_on()
    os._exit(0)


ok(C.prctl(36, 1, 0, 0, 0))
os.waitpid(child(lead), 0)
live()
