"""A child in a session whose leader has ended."""
# answer: moves

import os

from .life import C, child, live, ok

ok(C.prctl(36, 1, 0, 0, 0))


def lead() -> None:
    os.setsid()
    child()


os.waitpid(child(lead), 0)
live()
