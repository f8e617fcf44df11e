"""An inotify watch of a file of the kernel."""
# answer: refused watch

from .life import C, live, ok

number = ok(C.inotify_init1(0))
ok(C.inotify_add_watch(number, b"/proc/mounts", 2))
live()
