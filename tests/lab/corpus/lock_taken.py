"""A lock on a file that is locked on the destination."""
# answer: refused file_locked
# both: touch /tmp/lock-taken
# there: flock /tmp/lock-taken sleep 100000

import fcntl
import os

from .life import live

number = os.open("/tmp/lock-taken", os.O_RDWR)
fcntl.flock(number, fcntl.LOCK_EX)
live()
