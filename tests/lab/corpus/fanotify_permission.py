"""A fanotify group that is asked before files are opened."""
# answer: moves
# both: mkdir -p /tmp/fanotify

import os

from .life import C, live, ok

os.makedirs("/tmp/fanotify", exist_ok=True)
number = ok(C.fanotify_init(4, 0))  # FAN_CLASS_CONTENT
ok(C.fanotify_mark(number, 1, 0x10000, -100, b"/tmp/fanotify"))  # FAN_OPEN_PERM
live()
