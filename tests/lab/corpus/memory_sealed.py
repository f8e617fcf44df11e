"""Memory that must stay as it is (mseal)."""
# answer: moves

import ctypes

from .life import live, mmap, syscall

address = mmap(4096 * 4)
syscall(462, ctypes.c_void_p(address), 4096 * 4, 0)
live()
