"""A userfaultfd that nothing is registered with."""
# answer: refused descriptor_kind

import os

from .life import live, syscall

syscall(323, os.O_CLOEXEC)
live()
