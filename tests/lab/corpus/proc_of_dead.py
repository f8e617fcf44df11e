"""What the kernel tells of a process that has ended."""
# answer: moves

import os

from .life import child, live

pid = child()
number = os.open(f"/proc/{pid}/status", os.O_RDONLY)
os.kill(pid, 9)
os.waitpid(pid, 0)
live()
