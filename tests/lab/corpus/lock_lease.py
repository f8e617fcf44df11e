"""A lease on a file."""
# answer: moves
# both: touch /tmp/lock-lease

import fcntl
import os

from .life import live

number = os.open("/tmp/lock-lease", os.O_RDONLY)
fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_RDLCK)


def well() -> None:
    assert fcntl.fcntl(number, fcntl.F_GETLEASE) == fcntl.F_RDLCK


live(well)
