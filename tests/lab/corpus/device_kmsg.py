"""The kernel's log."""
# answer: moves
# both: mknod -m 600 /dev/kmsg c 1 11

import os

from .life import live

number = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
live()
