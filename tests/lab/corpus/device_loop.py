"""A block device."""
# answer: refused device
# both: mknod -m 600 /dev/loop7 b 7 7

import os

from .life import live

number = os.open("/dev/loop7", os.O_RDONLY)
live()
