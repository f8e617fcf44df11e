"""A process that shares its working directory with its parent."""
# answer: refused shared_between_processes

from .life import C, live, syscall

if syscall(56, 0x200 | 17, 0, 0, 0, 0) == 0:  # CLONE_FS
    while True:
        C.pause()
live()
