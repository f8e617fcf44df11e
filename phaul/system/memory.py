"""How much memory this host can give, how big its pages are, what an agent may keep, who is spared when it runs out."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

from phaul.system.procfs import parse_keys

_KIB = 1024
_M_ARENA_MAX = -8  # malloc.h
_NEVER = "-1000"  # OOM_SCORE_ADJ_MIN, linux/oom.h
_SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def page_size_bytes() -> int:
    """Ask the kernel for its page size: 4096 on x86-64, up to 65536 on arm64."""
    return resource.getpagesize()


def parse_available_bytes(meminfo: str) -> int:
    """Read MemAvailable of ``/proc/meminfo``: what can be had without swapping, page cache that can go included."""
    return int(parse_keys(meminfo)["MemAvailable"].removesuffix("kB")) * _KIB


def available_bytes() -> int:
    """Say how much memory can be had on this host without swapping."""
    return parse_available_bytes(Path("/proc/meminfo").read_text())


def huge_tmpfs_allowed(shmem_enabled: str) -> bool:
    """Read shmem_enabled: ``deny`` switches huge pages off for every tmpfs, whatever its mount says.

    Everything else leaves it to the mount (Documentation/admin-guide/mm/transhuge.rst, Linux 6.12).
    """
    return "[deny]" not in shmem_enabled


def has_huge_tmpfs() -> bool:
    """Say whether a tmpfs mounted with ``huge=`` gets huge pages here; a kernel without the option lacks the file."""
    return _SHMEM_ENABLED.exists() and huge_tmpfs_allowed(_SHMEM_ENABLED.read_text())


def keep_from_oom_killer(pid: int | str = "self") -> None:
    """Have the kernel end any other process before this one when memory runs out (proc_pid_oom_score_adj(5)).

    Children inherit it. Nothing happens without CAP_SYS_RESOURCE, or where the process has ended.
    """
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(_NEVER)
    except OSError:
        pass


def limit_arenas(count: int) -> None:
    """Have malloc keep at most `count` arenas in this process: each thread that copies would else warm one up for good.

    Nothing happens with a C library that does not know of arenas (glibc: mallopt(3)).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, count)
