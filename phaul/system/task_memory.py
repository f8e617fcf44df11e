"""The memory of a tree, read as it lies there, in the blocks that are hashed and compared with the destination's.

Called by `workloads.memory`; `transfer.page_digests` does the same with the files on the destination. Reads
``/proc/PID/mem`` and ``/proc/PID/map_files`` (proc(5)); changes nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import xxhash

from phaul.units import KIB

CHUNK_BYTES = 128 * KIB  # a block at most, with a digest each; what differs is looked at block by block

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


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


def blocks_of(
    runs: Runs, page_size_bytes: int, block_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[int, tuple[tuple[int, int], ...]]]:
    """Cut ascending runs at every multiple of `block_bytes`: (number of the block, its (address, size) segments).

    A block is what one digest covers. It depends on nothing but the addresses, so that each host can begin wherever it
    knows what is there.
    """
    number = -1
    segments: list[tuple[int, int]] = []
    for address, pages in runs:
        end = address + pages * page_size_bytes
        while address < end:
            here = address // block_bytes
            if here != number:
                if segments:
                    yield number, tuple(segments)
                number, segments = here, []
            upto = min(end, (here + 1) * block_bytes)
            if segments and sum(segments[-1]) == address:
                segments[-1] = (segments[-1][0], upto - segments[-1][0])
            else:
                segments.append((address, upto - address))
            address = upto
    if segments:
        yield number, tuple(segments)


class BlockReader:
    """Reads blocks of one task's memory, or of a file. Owns its buffer: what it gives is valid until the next.

    No more than `room_bytes` can be read at a time.
    """

    def __init__(self, pid: int | None, path: Path, room_bytes: int = CHUNK_BYTES) -> None:
        self._pid = pid
        self._path = path
        self._buffer = own_pages(room_bytes)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._fd = -1

    def read(self, segments: Sequence[tuple[int, int]]) -> memoryview:
        """Give the content of a block. Raises OSError where it cannot be read."""
        size = sum(count for _, count in segments)
        if self._pid is None or self._read_task(self._pid, segments, size) != size:
            self._read_file(segments)
        return self._buffer[:size]

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)

    def _read_task(self, pid: int, segments: Sequence[tuple[int, int]], size: int) -> int:
        """process_vm_readv(2): a third cheaper than /proc/PID/mem, but stops at what the task itself may not read."""
        local = _Vector(self._address, size)
        remote = (_Vector * len(segments))(*(_Vector(*segment) for segment in segments))
        return int(_libc.process_vm_readv(pid, ctypes.byref(local), 1, remote, len(segments), 0))

    def _read_file(self, segments: Sequence[tuple[int, int]]) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        filled = 0
        for offset, size in segments:
            end = filled + size
            while filled < end:
                count = os.preadv(self._fd, [self._buffer[filled:end]], offset)
                if count == 0:
                    # A memfd may end within a page, and what is mapped of that page beyond its end reads as zeros.
                    count = min(-offset % mmap.PAGESIZE, end - filled)
                    if count == 0:
                        raise OSError(0, f"{self._path} ends before {offset:#x}")
                    self._buffer[filled : filled + count] = bytes(count)
                offset += count
                filled += count


def digest(block: memoryview) -> bytes:
    """Give its XXH64, 8 bytes: against damage, not against people. Needs no vector unit, unlike XXH3.

    On a server XXH3 is half as fast again (24 and 15 GB/s, 128 KiB at a time), and the network slower than both by far.
    Emulated by QEMU it takes three times as long.
    """
    return xxhash.xxh64_digest(block)


def digests_of(blocks: memoryview) -> list[bytes]:
    """Give those of whole blocks that follow one another."""
    return [xxhash.xxh64_digest(blocks[at : at + CHUNK_BYTES]) for at in range(0, len(blocks), CHUNK_BYTES)]


class RunningDigests:
    """The digests of an image whose content comes ascending, hashed while it is still in the processor's cache."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._number = -1
        self._hash = xxhash.xxh64()

    def feed(self, address: int, content: memoryview) -> None:
        """Take what lies at an address and after it; must lie above all before."""
        while content:
            number, into = divmod(address, CHUNK_BYTES)
            if number != self._number:
                self._end_block()
            if not into and len(content) >= CHUNK_BYTES:  # whole blocks, which is cheaper
                count = len(content) // CHUNK_BYTES * CHUNK_BYTES
                self._done += digests_of(content[:count])
            else:
                count = min(len(content), CHUNK_BYTES - into)
                self._number = number
                self._hash.update(content[:count])
            address += count
            content = content[count:]

    def digests(self) -> tuple[bytes, ...]:
        """All of them; nothing may be fed any more."""
        self._end_block()
        return tuple(self._done)

    def _end_block(self) -> None:
        if self._number >= 0:
            self._done.append(self._hash.digest())
            self._hash.reset()
            self._number = -1
