"""A descriptor whose events are signalled to a process that stays."""
# answer: refused pipe_leaves_tree

import fcntl
import os

from .life import live, stranger

reader, writer = os.pipe()
fcntl.fcntl(reader, fcntl.F_SETOWN, stranger())
live()
