"""An inotify watch of a directory on the overlay that a host of the lab has as its root."""
# answer: refused watch
# both: mkdir -p /srv/inotify

import os

from .life import C, live, ok

directory = "/srv/inotify"
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
