"""A file of sysfs."""
# answer: moves

import os

from .life import live

number = os.open("/sys/kernel/mm/transparent_hugepage/enabled", os.O_RDONLY)
live(lambda: os.pread(number, 10, 0))
