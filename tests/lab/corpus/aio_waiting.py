"""A request of Linux AIO that has not ended: it waits for a pipe."""
# answer: moves

import ctypes
import os
import struct

from .life import live, syscall

context = ctypes.c_ulong()
syscall(206, 32, ctypes.byref(context))
reader, writer = os.pipe()
# struct iocb: data, key, rw_flags, IOCB_CMD_POLL, priority, descriptor, POLLIN
request = ctypes.create_string_buffer(struct.pack("QIIHhIQqqQII", 1, 0, 0, 5, 0, reader, 1, 0, 0, 0, 0, 0))
pointers = (ctypes.c_void_p * 1)(ctypes.addressof(request))
syscall(209, context.value, 1, pointers)
live()
