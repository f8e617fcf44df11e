"""A controlling terminal that no descriptor leads to, with its emulator behind."""
# answer: refused terminal

import fcntl
import os
import termios

from .life import live, stranger

master, slave = os.openpty()
stranger()
os.close(master)
fcntl.ioctl(slave, termios.TIOCSCTTY, 1)
os.close(slave)
live()
