"""A lock by flock whose open file a process that stays has too."""
# answer: moves
# both: touch /tmp/lock-with-stranger

import fcntl
import os

from .life import live, stranger

number = os.open("/tmp/lock-with-stranger", os.O_RDWR)
fcntl.flock(number, fcntl.LOCK_EX)
stranger()
live()
