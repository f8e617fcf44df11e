"""A library of its own that is another build on the destination: same size, other content."""
# answer: refused file_differs
# here: printf 1111 >/tmp/same-name
# there: printf 2222 >/tmp/same-name

import mmap
import os

from .life import live

number = os.open("/tmp/same-name", os.O_RDONLY)
mapped = mmap.mmap(number, 4, prot=mmap.PROT_READ)
os.close(number)


def well() -> None:
    assert mapped[:4] == b"1111"


live(well)
