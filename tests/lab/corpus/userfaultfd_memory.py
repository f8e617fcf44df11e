"""Memory that is registered with a userfaultfd."""
# answer: refused descriptor_kind

import fcntl
import os
import struct

from .life import live, mmap, syscall

number = syscall(323, os.O_CLOEXEC)
api = bytearray(struct.pack("QQQ", 0xAA, 0, 0))
fcntl.ioctl(number, 0xC018AA3F, api)
address = mmap(8192)
fcntl.ioctl(number, 0xC020AA00, bytearray(struct.pack("QQQQ", address, 8192, 1, 0)))
live()
