"""The controlling end of a terminal alone."""
# answer: moves

import os

from .life import live

master, slave = os.openpty()
os.close(slave)
live()
