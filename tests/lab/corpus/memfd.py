"""A memfd, sealed, and mapped as well."""
# answer: moves

import fcntl
import mmap
import os

from .life import live

number = os.memfd_create("corpus", os.MFD_ALLOW_SEALING)
os.write(number, b"content" * 1000)
mapped = mmap.mmap(number, 7000)
fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)


def well() -> None:
    assert mapped[:7] == b"content"
    assert os.pread(number, 7, 6993) == b"content"
    assert fcntl.fcntl(number, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


live(well)
