"""A root that leads neither its session nor its group."""
# answer: moves
# life: child

import os
import sys

from .life import live

if len(sys.argv) == 1:
    pid = os.fork()
    if pid:
        print("root", pid, flush=True)
        os.waitpid(pid, 0)
live()
