"""The machine's console."""
# answer: refused terminal
# both: mknod -m 600 /dev/console c 5 1

import os

from .life import live

number = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY)
live()
