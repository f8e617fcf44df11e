"""A terminal whose emulator stays behind."""
# answer: refused terminal

import os

from .life import live, stranger

master, slave = os.openpty()
stranger()
os.close(master)
live()
