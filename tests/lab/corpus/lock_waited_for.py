"""A lock that a child waits for."""
# answer: moves
# both: touch /tmp/lock-waited-for

import fcntl
import os
import time

from .life import child, live

number = os.open("/tmp/lock-waited-for", os.O_RDWR)
fcntl.lockf(number, fcntl.LOCK_EX)
child(lambda: fcntl.lockf(os.open("/tmp/lock-waited-for", os.O_RDWR), fcntl.LOCK_EX))
time.sleep(0.1)
live()
