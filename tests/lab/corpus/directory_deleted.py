"""A working directory that was removed."""
# answer: moves

import os

from .life import live

os.mkdir("/tmp/directory-deleted")
os.chdir("/tmp/directory-deleted")
os.rmdir("/tmp/directory-deleted")
live()
