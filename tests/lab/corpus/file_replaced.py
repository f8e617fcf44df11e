"""A file that was replaced by another one with its name."""
# answer: refused deleted_file_linked

import os

from .life import live

number = os.open("/tmp/file-replaced", os.O_CREAT | os.O_RDWR)
os.link("/tmp/file-replaced", "/tmp/file-replaced-2")
os.unlink("/tmp/file-replaced")
os.close(os.open("/tmp/file-replaced", os.O_CREAT | os.O_RDWR))
live()
