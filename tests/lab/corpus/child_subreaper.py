"""A process that takes in the orphans below it."""
# answer: moves

import ctypes

from .life import C, live, ok

ok(C.prctl(36, 1, 0, 0, 0))


def well() -> None:
    answer = ctypes.c_int()
    ok(C.prctl(37, ctypes.byref(answer), 0, 0, 0))
    assert answer.value == 1


live(well)
