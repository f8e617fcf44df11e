"""A process stopped at its very end, whoever ends it and how, so that something can be done before it is undone.

Called by `system.keeper` for CRIU: a tracer that is killed lets go of the tasks that it traces only after its
PTRACE_EVENT_EXIT (ptrace(2); Linux, kernel/exit.c: do_exit stops for the event before it comes to exit_notify). Until
the watcher goes on they stand as they stood. Standard library only. Its signals are handed on as they come.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable

# linux/ptrace.h
PTRACE_CONT = 7
PTRACE_DETACH = 17
PTRACE_SEIZE = 0x4206
PTRACE_LISTEN = 0x4208
PTRACE_O_TRACEEXIT = 1 << 6
PTRACE_EVENT_EXIT = 6
PTRACE_EVENT_STOP = 128
WALL = 0x40000000  # __WALL, wait(2)
GROUP_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class ExitStop(threading.Thread):
    """Waits for the end of one process of one thread. ptrace(2) knows its tracers by thread, so this is one.

    Args:
        pid: a process that nobody traces.
        at_exit: called while it stands at its end, in this thread.
    """

    def __init__(self, pid: int, at_exit: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._at_exit = at_exit
        self._begun = threading.Event()
        self._seized = False

    def begin(self) -> bool:
        """Start; say whether the process is watched now. It is not where it has ended, or somebody else traces it."""
        self.start()
        self._begun.wait()
        return self._seized

    def run(self) -> None:
        """Hand its signals on until it comes to its end."""
        self._seized = _ptrace(PTRACE_SEIZE, self._pid, PTRACE_O_TRACEEXIT)
        self._begun.set()
        while self._seized:
            try:
                _, status = os.waitpid(self._pid, WALL)
            except OSError:
                return
            if not os.WIFSTOPPED(status):
                return
            self._go_on(os.WSTOPSIG(status), status >> 16)

    def _go_on(self, number: int, event: int) -> None:
        if event == PTRACE_EVENT_EXIT:
            try:
                self._at_exit()
            finally:
                self._seized = not _ptrace(PTRACE_DETACH, self._pid, 0)
        elif event == PTRACE_EVENT_STOP:
            _ptrace(PTRACE_LISTEN if number in GROUP_STOPS else PTRACE_CONT, self._pid, 0)
        else:
            _ptrace(PTRACE_CONT, self._pid, 0 if event else number)


def _ptrace(request: int, pid: int, data: int) -> bool:
    return bool(_libc.ptrace(request, pid, None, data) == 0)
