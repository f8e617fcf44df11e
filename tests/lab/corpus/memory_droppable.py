"""Memory that the kernel may drop (MAP_DROPPABLE)."""
# answer: moves

import ctypes

from .life import live, mmap

address = mmap(4096, flags=0x28)
ctypes.memset(address, 1, 4096)
live()
