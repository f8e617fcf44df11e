"""An inotify watch of a directory in memory."""
# answer: moves
# both: mkdir -p /tmp/inotify

import os

from .life import C, live, ok

directory = "/tmp/inotify"
os.makedirs(directory, exist_ok=True)
number = ok(C.inotify_init1(0))
ok(C.inotify_add_watch(number, directory.encode(), 0x100))  # IN_CREATE
count = 0


def well() -> None:
    global count
    count += 1
    os.close(os.open(f"{directory}/{count}", os.O_CREAT))
    assert str(count).encode() in os.read(number, 4096)
    os.unlink(f"{directory}/{count}")


live(well)
