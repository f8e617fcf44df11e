"""A fanotify mark on a directory in memory."""
# answer: moves
# both: mkdir -p /tmp/fanotify

import os

from .life import C, live, ok

os.makedirs("/tmp/fanotify", exist_ok=True)
number = ok(C.fanotify_init(0, 0))
ok(C.fanotify_mark(number, 1, 0x20, -100, b"/tmp/fanotify"))  # FAN_OPEN
live()
