"""Whether what the destination received is what the source holds: the last thing checked before COMMIT.

Called by `workloads.process`. CRIU has no checksum of its own, and a hash of the memory as it lies in the tree covers
all of the way: CRIU's dump, the wire, the destination's files.

One thing may rightly differ: the restartable sequence area of a thread (struct rseq, linux/rseq.h; glibc registers one
for every thread since 2.35). The kernel writes the CPU that a thread runs on into it whenever that changes, and CRIU
lets threads run for a moment after it has dumped their memory, to take its parasite out. The kernel writes it again as
soon as the copy runs, so that it does not matter what is restored there.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from phaul.errors import TransferError
from phaul.migration.page_images import Ahead, Block, HashedImage, Segments
from phaul.system import namespaces, procfs, sysv
from phaul.system.memory import page_size_bytes
from phaul.system.task_memory import (
    CHUNK_BYTES,
    BlockReader,
    blocks_of,
    digest,
    memory_of_task,
    shared_memory,
)

NAME = re.compile(r"pagemap-(?P<shared>shmem-)?(?P<number>[0-9]+)\.img")

RSEQ = struct.Struct("=IIQIIII")  # cpu_id_start, cpu_id, rseq_cs, flags, node_id, mm_cid, padding; aligned to its size
MOST_CPUS = 1 << 16
GONE = Path("/nonexistent")  # where shared memory lies that no task of the tree holds any more
UNCHANGED_FIELDS = (2, 3)  # rseq_cs and flags belong to the program, not to the kernel


def differing(pids: Sequence[int], images: Sequence[HashedImage], ahead: Ahead) -> tuple[Block, ...]:
    """Hash the memory behind these images, except for what was hashed `ahead`; give the blocks that differ. Blocks.

    What cannot be read differs. Raises `TransferError` where the destination's answer makes no sense.
    """
    found: list[Block] = []
    for image in images:
        blocks = list(blocks_of(image.runs, page_size_bytes(), image.block_bytes))
        if len(blocks) != len(image.digests) or image.block_bytes > CHUNK_BYTES:
            raise TransferError(f"the digests that the destination gave of {image.name} are not those of its pages")
        known = ahead.get(image.name, {}) if image.block_bytes == CHUNK_BYTES else {}
        with _reader(pids, image.name) as reader:
            for (number, segments), theirs in zip(blocks, image.digests, strict=True):
                if known.get(number) != (segments, theirs) and _digest(reader, segments) != theirs:
                    found.append(Block(image.name, tuple((at, count // page_size_bytes()) for at, count in segments)))
    return tuple(found)


def _digest(reader: BlockReader | sysv.AttachedSegment, segments: Segments) -> bytes:
    try:
        return digest(reader.read(segments))
    except OSError:
        return b""


def differs(pids: Sequence[int], block: Block, theirs: bytes) -> bool:
    """Whether a block of a frozen tree differs in more than what the kernel itself has written here meanwhile. Blocks.

    Raises `TransferError` where it cannot be read.
    """
    with _reader(pids, block.name) as reader:
        try:
            ours = bytes(reader.read([(at, pages * page_size_bytes()) for at, pages in block.runs]))
        except OSError as error:
            raise TransferError(f"the memory behind {block.name} could not be read to compare it: {error}") from error
    return not written_by_kernel(ours, theirs)


@contextmanager
def _reader(pids: Sequence[int], name: str) -> Iterator[BlockReader | sysv.AttachedSegment]:
    match = NAME.fullmatch(name)
    if match is None:
        raise TransferError(f"the destination has received an image of the unknown name {name!r}")
    number = int(match["number"])
    reader = _shared(pids, number) if match["shared"] else BlockReader(number, memory_of_task(number))
    try:
        yield reader
    finally:
        reader.close()


def _shared(pids: Sequence[int], number: int) -> BlockReader | sysv.AttachedSegment:
    """Of shared memory: a segment of System V, where the tree has such ones of its own, else what has this inode."""
    try:
        if pids and procfs.read_namespaces(pids[0])["ipc"] != procfs.read_namespaces(os.getpid())["ipc"]:
            return namespaces.inside(namespaces.ipc_of(pids[0]), lambda: sysv.AttachedSegment(number))
    except (OSError, KeyError):
        pass  # there is none of this number
    try:
        path = shared_memory(pids, number)
    except OSError:
        path = GONE
    return BlockReader(None, path)


def written_by_kernel(ours: bytes, theirs: bytes) -> bool:
    """Whether two blocks differ only where the kernel notes which CPU a thread runs on."""
    if len(ours) != len(theirs):
        return False
    size = RSEQ.size
    for start in range(0, len(ours), page_size_bytes()):
        end = start + page_size_bytes()
        if ours[start:end] == theirs[start:end]:
            continue
        for at in range(start, min(end, len(ours)), size):
            if ours[at : at + size] != theirs[at : at + size] and not _rseq(ours, theirs, at):
                return False
    return True


def _rseq(ours: bytes, theirs: bytes, at: int) -> bool:
    one, other = RSEQ.unpack_from(ours, at), RSEQ.unpack_from(theirs, at)
    if any(one[field] != other[field] for field in UNCHANGED_FIELDS) or one[6] != other[6]:
        return False
    return all(start == cpu and cpu < MOST_CPUS and cid < MOST_CPUS for start, cpu, _, _, _, cid, _ in (one, other))


assert CHUNK_BYTES % RSEQ.size == 0
