"""A file system of its own, as sshfs has it."""
# answer: refused device
# both: mknod -m 600 /dev/fuse c 10 229

import os

from .life import live

number = os.open("/dev/fuse", os.O_RDWR)
live()
