"""The memory of a stopped tree, read as it lies there, and hashed: the destination's is compared with it before COMMIT.

Called by `workloads.memory` and, for the files on the destination, by `agent.server`. Reads ``/proc/PID/mem`` and
``/proc/PID/map_files`` (proc(5)); changes nothing. The tree must not run meanwhile.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import xxhash

from phaul.units import KIB

CHUNK_BYTES = 128 * KIB  # a digest each; what differs is looked at chunk by chunk

Runs = Sequence[tuple[int, int]]  # (address or offset, count of pages)


def own_pages(count: int) -> memoryview:
    """Give a buffer that goes back to the kernel with its last user.

    malloc keeps what is freed in an arena a thread, which is a megabyte or two for each thread that ever copied.
    """
    return memoryview(mmap.mmap(-1, count))


def memory_of_task(pid: int) -> Path:
    """Where the memory of a task can be read by address."""
    return Path(f"/proc/{pid}/mem")


def shared_memory(pids: Iterable[int], inode: int) -> Path:
    """Where shared memory can be read by offset, by the inode that CRIU names it after; `FileNotFoundError` else."""
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
            fields = line.split(maxsplit=5)  # range, permissions, offset, device, inode, path
            if int(fields[4]) == inode:
                return Path(f"/proc/{pid}/map_files/{fields[0]}")
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if entry.stat().st_ino == inode:
                    return entry
            except OSError:
                continue  # closed, or of a kind without an inode
    raise FileNotFoundError(f"no task of the tree holds the shared memory {inode}")


def chunks_of_runs(path: Path, runs: Runs, page_size_bytes: int) -> Iterator[memoryview]:
    """Read runs of pages one after the other, cut into chunks. Each is valid until the next. OSError if unreadable."""
    buffer = own_pages(CHUNK_BYTES)
    filled = 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for address, pages in runs:
            end = address + pages * page_size_bytes
            while address < end:
                size = os.preadv(fd, [buffer[filled : filled + end - address]], address)
                if size == 0:
                    raise OSError(0, f"{path} ends before {address:#x}")
                address += size
                filled += size
                if filled == CHUNK_BYTES:
                    yield buffer
                    filled = 0
        if filled:
            yield buffer[:filled]
    finally:
        os.close(fd)


def chunks_of_file(path: Path) -> Iterator[memoryview]:
    """Map a file and cut it into chunks. It must not shrink meanwhile."""
    if path.stat().st_size == 0:
        return
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
    ):
        for start in range(0, len(content), CHUNK_BYTES):
            with content[start : start + CHUNK_BYTES] as chunk:
                yield chunk


def digests(chunks: Iterable[memoryview]) -> tuple[bytes, ...]:
    """Give the XXH3-128 of each chunk."""
    return tuple(xxhash.xxh3_128_digest(chunk) for chunk in chunks)
