"""Memory of huge pages."""
# answer: moves

import ctypes

from .life import live, missing, mmap

try:
    address = mmap(2 << 20, flags=0x40022)
except OSError:
    missing("this machine has no free huge pages (vm.nr_hugepages)")
ctypes.memset(address, 7, 2 << 20)


def well() -> None:
    assert ctypes.string_at(address, 2) == b"\7\7"


live(well)
