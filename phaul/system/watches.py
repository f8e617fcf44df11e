"""What inotify and fanotify watch: the file handles of ``/proc/PID/fdinfo``, and the paths that they lead to.

Called by `workloads.holdings`. A handle is opened with O_PATH only, as CRIU does it (criu/fsnotify.c, 4.2): no file is
read, and nobody who watches for opening is told.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass

from phaul.system.procfs import DELETED_SUFFIX, MountEntry

_LINE = re.compile(
    r"^(?:inotify wd|fanotify).*\bino:[0-9a-f]+ sdev:([0-9a-f]+) .*"
    r"fhandle-bytes:([0-9a-f]+) fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]+)"
)
_MOUNT_LINE = re.compile(r"^fanotify mnt_id:([0-9a-f]+) ")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Watch:
    """One watch: of a file (`device`, `handle`), or of a whole mount (`mount_id`)."""

    device: int = 0  # as the kernel encodes it inside: 12 bits of major, 20 of minor
    handle_type: int = 0
    handle: bytes = b""
    mount_id: int = 0


def parse(lines: tuple[str, ...]) -> tuple[Watch, ...]:
    """Read the lines of an inotify's or fanotify's fdinfo; a mark on a whole file system is left out."""
    found: list[Watch] = []
    for line in lines:
        if match := _LINE.match(line):
            device, size, kind, handle = match.groups()
            found.append(Watch(int(device, 16), int(kind, 16), bytes.fromhex(handle)[: int(size, 16)]))
        elif match := _MOUNT_LINE.match(line):
            found.append(Watch(mount_id=int(match[1], 16)))
    return tuple(found)


def path_of(watch: Watch, mounts: dict[int, MountEntry]) -> str:
    """Give the path of what is watched, "" where its handle leads nowhere from here: CRIU cannot find it either."""
    if watch.mount_id:
        return mounts[watch.mount_id].mount_point if watch.mount_id in mounts else ""
    device = os.makedev(watch.device >> 20, watch.device & 0xFFFFF)
    for mount in mounts.values():
        if mount.device != device:
            continue
        path = _open_by_handle(watch, mount.mount_point)
        if path and not path.endswith(DELETED_SUFFIX):
            return path
    return ""


def _open_by_handle(watch: Watch, mount_point: str) -> str:
    class Handle(ctypes.Structure):
        _fields_ = (
            ("size", ctypes.c_uint),
            ("kind", ctypes.c_int),
            ("content", ctypes.c_ubyte * len(watch.handle)),
        )

    try:
        mount = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # a file is mounted there, or it is gone
        return ""
    try:
        content = (ctypes.c_ubyte * len(watch.handle)).from_buffer_copy(watch.handle)
        handle = Handle(len(watch.handle), watch.handle_type, content)
        found = _libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
        if found < 0:
            return ""
        try:
            return os.readlink(f"/proc/self/fd/{found}")  # noqa: PTH115 -- no path, a link of /proc
        finally:
            os.close(found)
    finally:
        os.close(mount)
