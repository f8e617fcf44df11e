"""A lock on storage that both hosts share."""
# answer: refused file_locked

import fcntl
import os

from .life import live

number = os.open("/srv/shared/lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(number, fcntl.LOCK_EX)
live()
