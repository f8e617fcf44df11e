"""A process that shares its place in the disks' queues with its parent."""
# answer: moves

from .life import C, live, syscall

if syscall(56, 0x80000000 | 17, 0, 0, 0, 0) == 0:  # CLONE_IO
    while True:
        C.pause()
live()
