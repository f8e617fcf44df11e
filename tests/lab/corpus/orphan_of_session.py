"""A root whose session and group are those of a leader that is gone."""
# answer: moves
# life: child

import os

from .life import live

pid = os.fork()
if pid:
    print("root", pid, flush=True)
    os._exit(0)
live()
