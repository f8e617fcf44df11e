"""Whether what the destination received is what the source holds: the last thing checked before COMMIT.

Called by `workloads.process`. CRIU has no checksum of its own, and a hash of the memory as it lies in the frozen tree
covers all of the way: CRIU's dump, the wire, the destination's files.

One thing may rightly differ: the restartable sequence area of a thread (struct rseq, linux/rseq.h; glibc registers one
for every thread since 2.35). The kernel writes the CPU that a thread runs on into it whenever that changes, and CRIU
lets threads run for a moment after it has dumped their memory, to take its parasite out. The kernel writes it again as
soon as the copy runs, so that it does not matter what is restored there.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from phaul.errors import TransferError
from phaul.migration.page_images import AheadOfImage, Digests, PageImage
from phaul.system.memory import page_size_bytes
from phaul.system.task_memory import (
    CHUNK_BYTES,
    BlockReader,
    blocks_of,
    digests,
    memory_of_task,
    shared_memory,
)

NAME = re.compile(r"pagemap-(?P<shared>shmem-)?(?P<number>[0-9]+)\.img")

RSEQ = struct.Struct("=IIQIIII")  # cpu_id_start, cpu_id, rseq_cs, flags, node_id, mm_cid, padding; aligned to its size
MOST_CPUS = 1 << 16
UNCHANGED_FIELDS = (2, 3)  # rseq_cs and flags belong to the program, not to the kernel

Fetch = Callable[[str, int], Awaitable[bytes]]  # (image, number of the block) to its content on the destination


def source_of(pids: Sequence[int], image: PageImage) -> Path:
    """Where the memory behind an image can be read here. Raises `TransferError` for a name that CRIU does not have."""
    match = NAME.fullmatch(image.name)
    if match is None:
        raise TransferError(f"the destination has received an image of the unknown name {image.name!r}")
    number = int(match["number"])
    return shared_memory(pids, number) if match["shared"] else memory_of_task(number)


def digests_here(pids: Sequence[int], image: PageImage, ahead: AheadOfImage) -> tuple[bytes, ...]:
    """Hash the memory behind an image as it lies here, except for what was hashed `ahead`. Blocks."""
    found: list[bytes] = []
    reader = _reader(pids, image)
    try:
        for number, segments in blocks_of(image.runs, page_size_bytes()):
            known = ahead.get(number)
            if known is not None and known[0] == segments:
                found.append(known[1])
            else:
                found += digests([reader.read(segments)])
    except OSError as error:
        raise TransferError(f"the memory behind {image.name} could not be read to compare it: {error}") from error
    finally:
        reader.close()
    return tuple(found)


async def differing(
    pids: Sequence[int], images: Sequence[PageImage], here: Digests, there: Digests, fetch: Fetch
) -> tuple[str, ...]:
    """Give the names of the images that differ in more than what the kernel itself has written here meanwhile."""
    found = []
    for image in images:
        pairs = itertools.zip_longest(here[image.name], there.get(image.name, ()))
        for number, (ours, theirs) in enumerate(pairs):
            if ours == theirs:
                continue
            content = await fetch(image.name, number)
            if not written_by_kernel(await asyncio.to_thread(block_here, pids, image, number), content):
                found.append(image.name)
                break
    return tuple(found)


def block_here(pids: Sequence[int], image: PageImage, index: int) -> bytes:
    """Give the content of one block as it lies here, counted from 0 among those that there are. Blocks."""
    found = next(itertools.islice(blocks_of(image.runs, page_size_bytes()), index, None), None)
    if found is None:
        return b""
    reader = _reader(pids, image)
    try:
        return bytes(reader.read(found[1]))
    finally:
        reader.close()


def _reader(pids: Sequence[int], image: PageImage) -> BlockReader:
    path = source_of(pids, image)
    match = NAME.fullmatch(image.name)
    return BlockReader(None if match is None or match["shared"] else int(match["number"]), path)


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
