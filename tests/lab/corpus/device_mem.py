"""The machine's memory."""
# answer: refused device
# both: mknod -m 600 /dev/mem c 1 1

import os

from .life import live, missing

try:
    number = os.open("/dev/mem", os.O_RDONLY)
except OSError:
    missing("this machine has no /dev/mem")
live()
