"""A file whose mount is covered by another one."""
# answer: refused mount_covered

import os

from .life import C, live, ok

os.makedirs("/mnt/covered", exist_ok=True)
ok(C.mount(b"below", b"/mnt/covered", b"tmpfs", 0, None))
number = os.open("/mnt/covered/file", os.O_CREAT | os.O_RDWR)
ok(C.mount(b"above", b"/mnt/covered", b"tmpfs", 0, None))
live()
