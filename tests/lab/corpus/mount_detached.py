"""A mount that was never put anywhere (open_tree)."""
# answer: refused mount_gone

import ctypes

from .life import live, syscall

syscall(428, -100, ctypes.c_char_p(b"/tmp"), 1)  # OPEN_TREE_CLONE
live()
