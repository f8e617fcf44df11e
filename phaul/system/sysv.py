"""System V semaphores and message queues that processes have used: ``/proc/sysvipc`` and semctl(2).

Called by `workloads.snapshot`. Asks only. Shared memory is found among the mappings.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_DIRECTORY = Path("/proc/sysvipc")
_GETPID = 11  # linux/sem.h: who did the last operation on a semaphore
_libc = ctypes.CDLL(None, use_errno=True)


def rows(text: str) -> list[dict[str, int]]:
    """Read a table of ``/proc/sysvipc``: a heading, then numbers (keys may be negative, permissions are octal)."""
    heading, *lines = text.splitlines() or [""]
    names = heading.split()
    return [dict(zip(names, map(int, line.split()), strict=False)) for line in lines]


def queues_used_by(pids: frozenset[int]) -> tuple[int, ...]:
    """Give the message queues that one of these processes was the last to send to or to receive from."""
    return tuple(row["msqid"] for row in _table("msg") if {row["lspid"], row["lrpid"]} & pids)


def semaphores_used_by(pids: frozenset[int]) -> tuple[int, ...]:
    """Give the sets of semaphores in which one of these processes was the last to change one."""
    found: list[int] = []
    for row in _table("sem"):
        if any(_libc.semctl(row["semid"], number, _GETPID) in pids for number in range(row["nsems"])):
            found.append(row["semid"])
    return tuple(found)


def _table(name: str) -> list[dict[str, int]]:
    try:
        return rows((_DIRECTORY / name).read_text())
    except OSError:  # a kernel without System V
        return []
