"""Files as CRIU will compare them at restore: type, size, mode, and the GNU build ID of ELF files.

Called by `workloads`. Opens regular files only, so that no device and no FIFO is ever touched. Also tells locked files.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import xxhash

ELF_MAGIC = b"\x7fELF"
NOTE_SEGMENT = 4  # PT_NOTE
BUILD_ID_NOTE = 3  # NT_GNU_BUILD_ID
# CRIU looks for the build ID in the first MiB only and takes none longer than 512 bytes (criu/files-reg.c, 4.2).
BUILD_ID_SEARCH_BYTES = 1024 * 1024
BUILD_ID_MAX_BYTES = 512
HASH_PREFIX = "content "
HASHED_BYTES = 32 * 1024 * 1024  # reads in 10 ms from the page cache
F_OFD_GETLK = 36  # linux/fcntl.h: asks for locks of any kind but flock's, without taking one


@dataclass(frozen=True, slots=True)
class FileLook:
    """A path as it looks on this host."""

    exists: bool
    size_bytes: int = 0
    mode: int = 0
    build_id: str = ""
    device: int = 0
    inode: int = 0


def parse_build_id(data: bytes) -> str:
    """Give the GNU build ID as hex from the first bytes of an ELF file of any class and byte order, else ""."""
    if len(data) < 64 or not data.startswith(ELF_MAGIC) or data[4] not in (1, 2) or data[5] not in (1, 2):
        return ""
    order = "<" if data[5] == 1 else ">"
    wide = data[4] == 2
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 32 if wide else 28)
    entry_bytes, entries = struct.unpack_from(order + "HH", data, 54 if wide else 42)
    for index in range(entries):
        entry = table + index * entry_bytes
        if entry + (56 if wide else 32) > len(data):
            break
        (kind,) = struct.unpack_from(order + "I", data, entry)
        if kind != NOTE_SEGMENT:
            continue
        if wide:
            offset, size = struct.unpack_from(order + "Q16xQ", data, entry + 8)
        else:
            offset, size = struct.unpack_from(order + "I8xI", data, entry + 4)
        if found := _build_id_of_notes(data[offset : offset + size], order):
            return found
    return ""


def _build_id_of_notes(notes: bytes, order: str) -> str:
    position = 0
    while position + 12 <= len(notes):
        name_bytes, value_bytes, kind = struct.unpack_from(order + "III", notes, position)
        name_at = position + 12
        value_at = name_at + (name_bytes + 3 & ~3)
        if kind == BUILD_ID_NOTE and notes[name_at : name_at + name_bytes] == b"GNU\0":
            value = notes[value_at : value_at + value_bytes]
            return value.hex() if len(value) == value_bytes <= BUILD_ID_MAX_BYTES else ""
        position = value_at + (value_bytes + 3 & ~3)
    return ""


def read_build_id(path: str | Path) -> str:
    """Give the build ID of a regular file, "" when it has none or may not be read."""
    try:
        # O_NONBLOCK: the path may have become a FIFO since it was looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or file.read(len(ELF_MAGIC)) != ELF_MAGIC:
            return ""
        file.seek(0)
        return parse_build_id(file.read(BUILD_ID_SEARCH_BYTES))


def content_id(path: str | Path, look: FileLook) -> str:
    """Name the content of a file that is mapped: its build ID, else a hash; "" of one too big to be read for that."""
    if look.build_id or not stat.S_ISREG(look.mode) or look.size_bytes > HASHED_BYTES:
        return look.build_id
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        return HASH_PREFIX + xxhash.xxh3_128_hexdigest(file.read(HASHED_BYTES))


def look_at(path: str | Path) -> FileLook:
    """Say how a path looks here, links followed; a path that cannot be reached does not exist."""
    try:
        look = Path(path).stat()
    except (OSError, ValueError):  # ValueError: a name with a NUL, which another host may send
        return FileLook(exists=False)
    regular = stat.S_ISREG(look.st_mode)
    return FileLook(
        exists=True,
        size_bytes=look.st_size if regular else 0,
        mode=look.st_mode,
        build_id=read_build_id(path) if regular else "",
        device=look.st_dev,
        inode=look.st_ino,
    )


def is_locked(path: str | Path) -> bool:
    """Say whether somebody holds a lock on a regular file that would keep another one from being taken.

    Takes a lock of the whole file and gives it back at once: only that also tells of locks of other hosts on shared
    storage. A file that cannot be opened is not locked.
    """
    for access in (os.O_RDWR, os.O_RDONLY):
        try:
            descriptor = os.open(path, access | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            continue
        try:
            return stat.S_ISREG(os.fstat(descriptor).st_mode) and _has_lock(descriptor, access)
        finally:
            os.close(descriptor)
    return False


def _has_lock(descriptor: int, access: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:  # a file system without flock
        pass
    kind = fcntl.F_WRLCK if access == os.O_RDWR else fcntl.F_RDLCK
    try:
        answer = fcntl.fcntl(descriptor, F_OFD_GETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return False
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)
