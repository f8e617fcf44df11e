"""The memory of a stopped tree, read as it lies there, and hashed: the destination's is compared with it before COMMIT.

Called by `workloads.memory` and, for the files on the destination, by `agent.server`. Reads ``/proc/PID/mem`` and
``/proc/PID/map_files`` (proc(5)); changes nothing. The tree must not run meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import xxhash

from phaul.units import KIB

CHUNK_BYTES = 128 * KIB  # a block, with a digest each; what differs is looked at block by block

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


def blocks_of(runs: Runs, page_size_bytes: int) -> Iterator[tuple[int, tuple[tuple[int, int], ...]]]:
    """Cut ascending runs at every multiple of `CHUNK_BYTES`: (number of the block, its (address, size) segments).

    A block is what one digest covers. It depends on nothing but the addresses, so that each host can begin wherever it
    knows what is there.
    """
    number = -1
    segments: list[tuple[int, int]] = []
    for address, pages in runs:
        end = address + pages * page_size_bytes
        while address < end:
            here = address // CHUNK_BYTES
            if here != number:
                if segments:
                    yield number, tuple(segments)
                number, segments = here, []
            upto = min(end, (here + 1) * CHUNK_BYTES)
            if segments and sum(segments[-1]) == address:
                segments[-1] = (segments[-1][0], upto - segments[-1][0])
            else:
                segments.append((address, upto - address))
            address = upto
    if segments:
        yield number, tuple(segments)


def block_sizes(runs: Runs, page_size_bytes: int) -> list[int]:
    """How many bytes of content each block has."""
    return [sum(size for _, size in segments) for _, segments in blocks_of(runs, page_size_bytes)]


class BlockReader:
    """Reads blocks of one task's memory, or of a file. Owns its buffer: what it gives is valid until the next."""

    def __init__(self, pid: int | None, path: Path) -> None:
        self._pid = pid
        self._path = path
        self._buffer = own_pages(CHUNK_BYTES)
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


def blocks_of_image(runs: Runs, pieces: Sequence[tuple[Path, int, int]], page_size_bytes: int) -> Iterator[memoryview]:
    """The blocks of a received image; one that lies in one whole file is not copied to be looked at."""
    sizes = block_sizes(runs, page_size_bytes)
    if len(pieces) == 1 and pieces[0][1:] == (0, pieces[0][0].stat().st_size):
        return _blocks_of_file(pieces[0][0], sizes)
    return _blocks_of_pieces(pieces, sizes)


def _blocks_of_file(path: Path, sizes: Iterable[int]) -> Iterator[memoryview]:
    """Map a file and cut it. It must not shrink meanwhile."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
    ):
        start = 0
        for size in sizes:
            with content[start : start + size] as block:
                yield block
            start += size


def _blocks_of_pieces(pieces: Iterable[tuple[Path, int, int]], sizes: Iterable[int]) -> Iterator[memoryview]:
    """Read (file, offset, size) pieces one after the other, and cut what they give.

    Raises OSError where one cannot be read, or ends too early.
    """
    buffer = own_pages(CHUNK_BYTES)
    filled = 0
    wanted = iter(sizes)
    size = next(wanted, 0)
    with contextlib.ExitStack() as stack:
        descriptors: dict[Path, int] = {}
        for path, offset, left in pieces:
            if (fd := descriptors.get(path)) is None:
                fd = descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
            while left:
                count = os.preadv(fd, [buffer[filled : min(filled + left, size)]], offset)
                if count == 0:
                    raise OSError(0, f"{path} ends before {offset:#x}")
                offset += count
                left -= count
                filled += count
                if filled == size:
                    yield buffer[:size]
                    filled, size = 0, next(wanted, 0)


def digests(blocks: Iterable[memoryview]) -> tuple[bytes, ...]:
    """Give the XXH3-128 of each block."""
    return tuple(xxhash.xxh3_128_digest(block) for block in blocks)


class RunningDigests:
    """The digests of an image whose content comes ascending, hashed while it is still in the processor's cache."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._number = -1
        self._hash = xxhash.xxh3_128()

    def feed(self, address: int, content: memoryview) -> None:
        """Take what lies at an address and after it; must lie above all before."""
        while content:
            number = address // CHUNK_BYTES
            if number != self._number:
                self._end_block()
                self._number = number
            count = min(len(content), (number + 1) * CHUNK_BYTES - address)
            self._hash.update(content[:count])
            address += count
            content = content[count:]

    def digests(self) -> tuple[bytes, ...]:
        """All of them; nothing may be fed any more."""
        self._end_block()
        self._number = -1
        return tuple(self._done)

    def _end_block(self) -> None:
        if self._number >= 0:
            self._done.append(self._hash.digest())
            self._hash.reset()
