"""A file whose name was removed, while it has another."""
# answer: refused deleted_file_linked

import os

from .life import live

number = os.open("/tmp/file-deleted-linked", os.O_CREAT | os.O_RDWR)
os.link("/tmp/file-deleted-linked", "/tmp/file-deleted-linked-2")
os.unlink("/tmp/file-deleted-linked")
live()
