"""A child in a session whose leader has ended, and whose number is in use on the destination."""
# answer: refused ids_taken
# life: helper

import os

from .life import C, child, live, ok

ok(C.prctl(36, 1, 0, 0, 0))


def lead() -> None:
    os.setsid()
    child()


pid = child(lead)
os.waitpid(pid, 0)
print("helper", pid, flush=True)
live()
