"""An open file that is locked by a process that stays."""
# answer: moves
# both: touch /tmp/lock-of-stranger

import fcntl
import os
import time

from .life import live, sleep_on, stranger


def lock() -> None:
    fcntl.lockf(os.open("/tmp/lock-of-stranger", os.O_RDWR), fcntl.LOCK_EX)
    os.mkdir("/tmp/lock-of-stranger.done")
    sleep_on()


stranger(lock)
while not os.path.exists("/tmp/lock-of-stranger.done"):
    time.sleep(0.01)
number = os.open("/tmp/lock-of-stranger", os.O_RDWR)
live()
