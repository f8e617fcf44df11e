"""A keyring of its own."""
# answer: moves

import ctypes

from .life import live, syscall

syscall(250, 1, ctypes.c_char_p(b"corpus"))
live()
