"""System V shared memory with a number that other shared memory has as its inode."""
# answer: refused shared_memory_number

import mmap
import re
from pathlib import Path

from .life import NEW_IPC, C, live, missing, ok, unshare

shared = mmap.mmap(-1, 4096)
inode = re.search(r"(?m)(\d+) +/dev/zero \(deleted\)$", Path("/proc/self/maps").read_text())
assert inode
unshare(NEW_IPC)
try:
    Path("/proc/sys/kernel/shm_next_id").write_text(inode[1])
except OSError:
    missing("/proc/sys/kernel/shm_next_id")
assert ok(C.shmget(0, 4096, 0o1600)) == int(inode[1])
live()
