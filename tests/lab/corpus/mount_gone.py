"""A file of a mount that was taken away lazily."""
# answer: refused mount_gone

import os

from .life import C, live, ok

os.makedirs("/mnt/gone", exist_ok=True)
ok(C.mount(b"gone", b"/mnt/gone", b"tmpfs", 0, None))
number = os.open("/mnt/gone/file", os.O_CREAT | os.O_RDWR)
ok(C.umount2(b"/mnt/gone", 2))
live()
