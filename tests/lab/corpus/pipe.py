"""A pipe within the tree, full, and larger than usual."""
# answer: moves

import fcntl
import os

from .life import child, live

reader, writer = os.pipe()
fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 18)
os.write(writer, b"x" * (1 << 18))
child()


def well() -> None:
    assert os.read(reader, 4096) == b"x" * 4096
    os.write(writer, b"x" * 4096)
    assert fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) == 1 << 18


live(well)
