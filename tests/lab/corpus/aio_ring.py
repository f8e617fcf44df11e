"""A ring of Linux AIO."""
# answer: moves

import ctypes

from .life import live, syscall

context = ctypes.c_ulong()
syscall(206, 32, ctypes.byref(context))
events = ctypes.create_string_buffer(1024)


def well() -> None:
    assert syscall(208, context.value, 0, 1, events, ctypes.create_string_buffer(16)) == 0


live(well)
