"""A device of the kind that the kernel calls miscellaneous."""
# answer: refused device
# both: mknod -m 600 /dev/loop-control c 10 237

import os

from .life import live

number = os.open("/dev/loop-control", os.O_RDWR)
live()
