"""A copy that still stands in CRIU's restorer: it has not executed an instruction of its own, and may never do.

Called by `workloads.identity`. CRIU ends a restore with a piece of its own code in each thread, which lies in anonymous
memory, blocks every signal that there is (in its last stage all but SIGTRAP), and waits on a futex until CRIU lets it
go (4.2, criu/pie/restorer.c; seen with 4.2.1). Only CRIU traces the copy there, and only in the last stage. A CRIU that
is killed leaves it waiting for good, and to anybody who only asks whether it lives it looks like a copy that runs.
Reads only.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from phaul.system import procfs
from phaul.system.procfs import Mapping

# A program cannot come to this mask by way of its C library, which keeps two signals for itself (nptl(7)).
EVERYTHING_BLOCKED = (1 << 64) - 1 - (1 << (signal.SIGKILL - 1)) - (1 << (signal.SIGSTOP - 1))
SIGTRAP_BIT = 1 << (signal.SIGTRAP - 1)
CRIU_NAME = "criu"


def stands_in_restorer(pid: int) -> bool:
    """Say whether any thread of a process waits in the restorer. Blocks; `OSError` where the process has ended."""
    for tid in procfs.thread_ids(pid):
        try:
            if int(procfs.read_status(tid)["SigBlk"], 16) | SIGTRAP_BIT != EVERYTHING_BLOCKED:
                continue
            counter = waits_at(procfs.read_syscall(pid, tid))
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
        if counter is not None and is_nobodys_code(counter, procfs.read_maps(pid)):
            return True
    return False


def waits_at(syscall: str) -> int | None:
    """Give the program counter of a thread that waits in the kernel out of `/proc/PID/syscall` (proc_pid_syscall(5)).

    None for one that runs, or that waits in no system call.
    """
    fields = syscall.split()
    return int(fields[-1], 16) if len(fields) == 9 else None  # number, six arguments, stack pointer, program counter


def is_nobodys_code(counter: int, mappings: Sequence[Mapping]) -> bool:
    """Say whether an address lies in executable memory of the process itself, which is in no file."""
    return any(
        each.start <= counter < each.end and "x" in each.permissions and not each.path and not each.shared
        for each in mappings
    )


def is_criu(pid: int) -> bool:
    """Say whether a process is CRIU, by its name or by the title that it gives itself ("criu: restore --rpc")."""
    try:
        return procfs.read_stat(pid).command == CRIU_NAME or procfs.read_title(pid).startswith(CRIU_NAME)
    except OSError:
        return False
