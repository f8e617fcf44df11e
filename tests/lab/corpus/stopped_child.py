"""A child that was stopped."""
# answer: moves

import os
import signal
import time

from .life import child, going_on, live

pid = child()
os.kill(pid, signal.SIGSTOP)
os.waitpid(pid, os.WUNTRACED)


def stopped() -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return time.monotonic_ns() if ") T " in stat.read() else 0


live(going_on(stopped))
