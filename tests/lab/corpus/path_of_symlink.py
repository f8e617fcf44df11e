"""A symbolic link itself (O_PATH | O_NOFOLLOW)."""
# answer: refused file_replaced

import os

from .life import live

number = os.open("/dev/fd", os.O_PATH | os.O_NOFOLLOW)
live(lambda: os.readlink("", dir_fd=number))
