"""A descriptor of a namespace that the process lives in."""
# answer: moves

import os

from .life import live

number = os.open("/proc/self/ns/net", os.O_RDONLY)
live()
