"""What the kernel tells of a process that stays."""
# answer: refused proc_of_stranger

import os

from .life import live, stranger

number = os.open(f"/proc/{stranger()}/status", os.O_RDONLY)
live(lambda: os.pread(number, 10, 0))
