"""A file and a directory that were not opened, only found (O_PATH)."""
# answer: moves

import os

from .life import live

file = os.open("/etc/hostname", os.O_PATH)
directory = os.open("/etc", os.O_PATH)
live(lambda: os.stat("hostname", dir_fd=directory))
