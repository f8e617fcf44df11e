"""Directories in memory of our own: one tmpfs a migration, so that room is bounded and giving it back is one unmount.

Used by `agent` for the images of a migration, on both hosts. Calls mount(2) and umount2(2) directly.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import structlog

from phaul.errors import PhaulError

log = structlog.get_logger(__name__)

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class MountError(PhaulError):
    """A directory in memory could not be made."""


def _mount(target: Path, options: str) -> int:
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if _libc.mount(b"phaul", os.fsencode(target), b"tmpfs", flags, options.encode()) == 0:
        return 0
    return ctypes.get_errno()


def mount_memory(target: Path, size_bytes: int) -> None:
    """Make `target` (created, mode 0700) a tmpfs of at most `size_bytes`, with huge pages where the kernel gives them.

    `huge=within_size` gives a 2 MiB page only where it lies wholly inside the file, so that small images stay small.
    Pages are taken as they are written; the size is a limit and no reservation.
    """
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = f"mode=0700,size={size_bytes}"
    failed = _mount(target, f"{options},huge=within_size")
    if failed == errno.EINVAL:  # a kernel without huge pages in tmpfs
        failed = _mount(target, options)
    if failed:
        raise MountError(f"no tmpfs could be mounted on {target}: {os.strerror(failed)}")


def unmount_memory(target: Path) -> None:
    """Unmount and remove a directory that `mount_memory` made, whoever still has files open in it. Idempotent."""
    while _libc.umount2(os.fsencode(target), MNT_DETACH) == 0:
        pass
    try:
        target.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("memory_directory.left", path=str(target), error=error.strerror)


def mounted_below(directory: Path) -> list[Path]:
    """Give the mount points directly below a directory, for cleaning up after a crash."""
    found: list[Path] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = Path(line.split()[4].replace("\\040", " "))
        if path.parent == directory:
            found.append(path)
    return found
