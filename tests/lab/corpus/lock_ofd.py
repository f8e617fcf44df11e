"""A lock that belongs to an open file."""
# answer: moves
# both: touch /tmp/lock-ofd

import fcntl
import os
import struct

from .life import live

number = os.open("/tmp/lock-ofd", os.O_RDWR)
fcntl.fcntl(number, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0))  # F_OFD_SETLK
live()
