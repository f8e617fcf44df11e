"""A pipe whose other end nobody has any more."""
# answer: moves

import os

from .life import live

reader, writer = os.pipe()
os.write(writer, b"rest")
os.close(writer)
live()
