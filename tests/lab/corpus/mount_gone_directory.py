"""A working directory on a mount that was taken away lazily."""
# answer: refused mount_gone

import os

from .life import C, live, ok

os.makedirs("/mnt/gone-directory", exist_ok=True)
ok(C.mount(b"gone", b"/mnt/gone-directory", b"tmpfs", 0, None))
os.chdir("/mnt/gone-directory")
ok(C.umount2(b"/mnt/gone-directory", 2))
live()
