"""System V objects: what processes have used (``/proc/sysvipc``, semctl(2)), and the content of shared memory.

Called by `workloads`. Asks and reads only. Each thread sees the objects of its own IPC namespace (ipc_namespaces(7)).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phaul.system.memory import page_size_bytes

_DIRECTORY = Path("/proc/sysvipc")
_GETPID = 11  # linux/sem.h: who did the last operation on a semaphore
_SHM_RDONLY = 0o10000  # linux/shm.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p
_libc.shmdt.argtypes = (ctypes.c_void_p,)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of shared memory. `number` is its shmid, after which CRIU names its image."""

    number: int
    size_bytes: int
    resident_bytes: int  # in memory or swapped: what CRIU dumps of it
    attached: int  # how often


def rows(text: str) -> list[dict[str, int]]:
    """Read a table of ``/proc/sysvipc``: a heading, then numbers (keys may be negative, permissions are octal)."""
    heading, *lines = text.splitlines() or [""]
    names = heading.split()
    return [dict(zip(names, map(int, line.split()), strict=False)) for line in lines]


def segments() -> tuple[Segment, ...]:
    """Give the shared memory of this thread's namespace."""
    return tuple(Segment(row["shmid"], row["size"], row["rss"] + row["swap"], row["nattch"]) for row in _table("shm"))


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


class AttachedSegment:
    """A segment of this thread's namespace, attached to this process for reading: from any thread, until `close`.

    Raises `OSError` where there is none of that number, or it may not be read.
    """

    def __init__(self, number: int) -> None:
        found = next((each for each in segments() if each.number == number), None)
        address = _libc.shmat(number, None, _SHM_RDONLY) if found else None
        if found is None or address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"the shared memory {number} cannot be attached")
        self._address = int(address)
        # What of the last page is beyond its end reads as zeros, here as in whoever else has it attached.
        size = -(-found.size_bytes // page_size_bytes()) * page_size_bytes()
        self._view = memoryview((ctypes.c_char * size).from_address(self._address)).cast("B")

    def read(self, segments: Sequence[tuple[int, int]]) -> memoryview:
        """Give the bytes at these (offset, size) in a row; fewer where they are beyond its end."""
        return memoryview(b"".join(self._view[offset : offset + size] for offset, size in segments))

    def close(self) -> None:
        """Detach it."""
        if self._address:
            self._view.release()
            _libc.shmdt(self._address)
            self._address = 0


def _table(name: str) -> list[dict[str, int]]:
    try:
        return rows((_DIRECTORY / name).read_text())
    except OSError:  # a kernel without System V
        return []
