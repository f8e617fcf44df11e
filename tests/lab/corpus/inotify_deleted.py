"""An inotify watch of a file whose name is gone while it is open."""
# answer: refused watch

import os

from .life import C, live, ok

path = "/tmp/inotify-deleted"
held = os.open(path, os.O_CREAT | os.O_RDWR)
number = ok(C.inotify_init1(0))
ok(C.inotify_add_watch(number, path.encode(), 2))  # IN_MODIFY
os.unlink(path)
live()
