"""A fanotify mark on a whole mount."""
# answer: moves

from .life import C, live, ok

number = ok(C.fanotify_init(0, 0))
ok(C.fanotify_mark(number, 1 | 0x10, 0x20, -100, b"/tmp"))  # FAN_MARK_MOUNT
live()
