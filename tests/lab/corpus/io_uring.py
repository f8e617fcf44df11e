"""An io_uring."""
# answer: refused io_uring

import ctypes

from .life import live, syscall

syscall(425, 8, ctypes.create_string_buffer(120))
live()
