"""A process's view of its own memory as a file."""
# answer: moves

import os

from .life import live

number = os.open("/proc/self/mem", os.O_RDONLY)
live()
