"""A lock by flock."""
# answer: moves
# both: touch /tmp/lock-flock

import fcntl
import os

from .life import live

number = os.open("/tmp/lock-flock", os.O_RDWR)
fcntl.flock(number, fcntl.LOCK_EX)


def well() -> None:
    other = os.open("/tmp/lock-flock", os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        raise AssertionError("the lock is gone")
    finally:
        os.close(other)


live(well)
