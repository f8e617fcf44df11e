"""The memory of a stopped tree, hashed as it lies there: what the destination holds is compared with it before COMMIT.

Called by `workloads.process`. Reads ``/proc/PID/mem`` and ``/proc/PID/map_files`` (proc(5)); changes nothing. The tree
must not run meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

from phaul.units import MIB

BUFFER_BYTES = 1 * MIB

Runs = Sequence[tuple[int, int]]  # (address or offset, count of pages)


def digest_of_task(pid: int, runs: Runs, page_size_bytes: int) -> bytes:
    """Hash runs of pages of a task in the order given. Raises OSError where one cannot be read."""
    return _digest(Path(f"/proc/{pid}/mem"), runs, page_size_bytes)


def digest_of_shared(pids: Iterable[int], inode: int, runs: Runs, page_size_bytes: int) -> bytes:
    """Hash runs of shared memory, by the inode that CRIU names it after. `FileNotFoundError` where no task holds it."""
    for pid in pids:
        for path in _holders(pid, inode):
            return _digest(path, runs, page_size_bytes)
    raise FileNotFoundError(f"no task of the tree holds the shared memory {inode}")


def digest_of_file(path: Path) -> bytes:
    """Hash a whole file, as the destination does with the pages it received."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.digest()


def _digest(path: Path, runs: Runs, page_size_bytes: int) -> bytes:
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for address, pages in runs:
            end = address + pages * page_size_bytes
            while address < end:
                size = os.preadv(fd, [buffer[: min(BUFFER_BYTES, end - address)]], address)
                if size == 0:
                    raise OSError(0, f"{path} ends before {address:#x}")
                digest.update(buffer[:size])
                address += size
    finally:
        os.close(fd)
    return digest.digest()


def _holders(pid: int, inode: int) -> Iterable[Path]:
    for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)  # range, permissions, offset, device, inode, path
        if int(fields[4]) == inode:
            yield Path(f"/proc/{pid}/map_files/{fields[0]}")
    folder = Path(f"/proc/{pid}/fd")
    for entry in folder.iterdir():
        try:
            if entry.stat().st_ino == inode:
                yield entry
        except OSError:
            continue  # closed, or of a kind without an inode
