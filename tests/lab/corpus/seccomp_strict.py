"""A process that may only read, write and end."""
# answer: moves

import os

from .life import C, child, live


def strict() -> None:
    reader, _writer = os.pipe()
    C.prctl(22, 1, 0, 0, 0)
    os.read(reader, 1)


child(strict)
live()
