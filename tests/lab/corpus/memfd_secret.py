"""Memory that not even the kernel reads."""
# answer: refused secret_memory

import os

from .life import live, mmap, syscall

number = syscall(447, 0)
os.ftruncate(number, 4096)
mmap(4096, flags=1, descriptor=number)
live()
