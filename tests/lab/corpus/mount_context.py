"""A file system that is being configured (fsopen)."""
# answer: refused descriptor_kind

import ctypes

from .life import live, syscall

syscall(430, ctypes.c_char_p(b"tmpfs"), 0)
live()
