"""What the kernel tells of a process of the tree."""
# answer: moves

import os

from .life import child, live

number = os.open(f"/proc/{child()}/status", os.O_RDONLY)
live(lambda: os.pread(number, 10, 0))
