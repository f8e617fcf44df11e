"""A big file without a name."""
# answer: refused deleted_file_too_big

import os

from .life import live

number = os.open("/tmp/file-deleted-big", os.O_CREAT | os.O_RDWR)
os.write(number, b"content" * 1000000)
os.unlink("/tmp/file-deleted-big")
live()
