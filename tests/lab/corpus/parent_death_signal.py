"""A child that is told when its parent ends."""
# answer: moves
# unseen: nobody outside can see PR_SET_PDEATHSIG; the signal comes when CRIU, its parent after the move, ends

import ctypes
import signal

from .life import C, live, ok


def well() -> None:
    answer = ctypes.c_int()
    ok(C.prctl(2, ctypes.byref(answer), 0, 0, 0))
    assert answer.value == signal.SIGUSR1


ok(C.prctl(1, signal.SIGUSR1, 0, 0, 0))
live(well)
