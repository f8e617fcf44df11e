"""An open directory, half read."""
# answer: moves

import os

from .life import live

number = os.open("/usr/bin", os.O_DIRECTORY)
os.lseek(number, 2, 0)
live(lambda: os.listdir(number))
