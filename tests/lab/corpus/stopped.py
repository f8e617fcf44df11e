"""A stopped process: it goes on as soon as somebody lets it."""
# answer: moves
# life: stopped

import os
import signal
import time

from .life import live, stranger

me = os.getpid()


def stop() -> None:
    time.sleep(0.3)
    os.kill(me, signal.SIGSTOP)


stranger(stop)
live()
