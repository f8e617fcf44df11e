"""A file of its control group."""
# answer: moves

import os

from .life import live

number = os.open("/sys/fs/cgroup/cgroup.events", os.O_RDONLY)
live(lambda: os.pread(number, 10, 0))
