"""A pipe to a process that stays."""
# answer: refused pipe_leaves_tree

import os

from .life import live, stranger

reader, writer = os.pipe()
stranger()
os.close(reader)
live()
