"""A file on a mount that the destination does not have; the same file lies in its place."""
# answer: moves
# both: mkdir -p /mnt/elsewhere && touch /mnt/elsewhere/file && chmod 600 /mnt/elsewhere/file

import os

from .life import C, live, ok

ok(C.mount(b"here", b"/mnt/elsewhere", b"tmpfs", 0, None))
number = os.open("/mnt/elsewhere/file", os.O_CREAT | os.O_RDWR, 0o600)
live()
