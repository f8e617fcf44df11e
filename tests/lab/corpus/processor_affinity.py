"""A process that is bound to one processor. It loses that, and the check warns of it."""
# answer: moves

import os

from .life import live

os.sched_setaffinity(0, {1})
live()
