"""An inotify watch of a directory of the system that nobody has changed."""
# answer: refused watch

from .life import C, live, ok

number = ok(C.inotify_init1(0))
ok(C.inotify_add_watch(number, b"/etc", 0x100))
live()
