"""The device that hands out userfaultfds."""
# answer: refused device

import os

from .life import live

number = os.open("/dev/userfaultfd", os.O_RDWR)
live()
