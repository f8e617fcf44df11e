"""A lock of POSIX on a part of a file."""
# answer: moves
# both: touch /tmp/lock-posix

import fcntl
import os

from .life import live

number = os.open("/tmp/lock-posix", os.O_RDWR)
fcntl.lockf(number, fcntl.LOCK_EX, 10, 100)


def well() -> None:
    with open("/proc/locks") as locks:
        assert any(f" {os.getpid()} " in line and "100 109" in line for line in locks)


live(well)
