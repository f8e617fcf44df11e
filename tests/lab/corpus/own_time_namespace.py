"""A clock of its own."""
# answer: moves

import os
import sys

from .life import NEW_TIME, live, unshare

if len(sys.argv) == 1:
    unshare(NEW_TIME)
    with open("/proc/self/timens_offsets", "w") as offsets:
        offsets.write("monotonic 1000 0\n")
    os.execv(sys.executable, [sys.executable, "-m", "corpus.own_time_namespace", "again"])
live()
