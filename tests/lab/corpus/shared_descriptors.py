"""A process that shares its descriptors with its parent."""
# answer: moves

from .life import C, live, syscall

if syscall(56, 0x400 | 17, 0, 0, 0, 0) == 0:  # CLONE_FILES
    while True:
        C.pause()
live()
