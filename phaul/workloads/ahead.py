"""Hashing a tree's memory while it still runs, so that little is left to hash once it stands still.

Called by `workloads.process`. What will be dumped is only guessed here, from what the kernel says is in memory: a
digest counts only where the guess of a block's pages proves right and the destination's is the same. Then what arrived
there is what lay here at that moment, and since nothing was sent before, it can only be so because nobody has written
since. `workloads.memory` hashes the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from phaul.migration.page_images import Ahead, AheadOfImage, Segments
from phaul.system import procfs
from phaul.system.memory import page_size_bytes
from phaul.system.procfs import PROC, Mapping
from phaul.system.task_memory import CHUNK_BYTES, BlockReader, Runs, blocks_of, digest, digests_of, memory_of_task
from phaul.units import MIB

ENTRY_BYTES = 8  # of /proc/PID/pagemap
IN_MEMORY = bytes(int(byte & 0xC0 != 0) for byte in range(256))  # of an entry's top byte: present, or swapped
PAGES_AT_ONCE = 1 << 15
THREADS = 2  # copying and hashing go on without the interpreter's lock; more would take too much from the workload
READ_BYTES = 1 * MIB  # at a time: a third cheaper than a block by itself
PART_READS = 32  # hashed by one thread


def hash_ahead(pids: Sequence[int], over: Callable[[], bool]) -> Ahead:
    """Hash the private anonymous memory of these processes, as far as it can be read, until `over`. Blocks."""
    found: dict[str, AheadOfImage] = {}
    with ThreadPoolExecutor(THREADS) as threads:
        for pid in pids:
            try:
                reads = [segments for _, segments in blocks_of(list(_runs(pid)), page_size_bytes(), READ_BYTES)]
            except OSError:
                reads = []  # whatever it is, it comes up again where every page counts
            parts = [reads[start : start + PART_READS] for start in range(0, len(reads), PART_READS)]
            image: dict[int, tuple[Segments, bytes]] = {}
            for hashed in threads.map(lambda part, pid=pid: _hash(pid, part, over), parts):
                image.update(hashed)
            found[f"pagemap-{pid}.img"] = image
    return found


def _hash(pid: int, reads: Sequence[Segments], over: Callable[[], bool]) -> dict[int, tuple[Segments, bytes]]:
    found: dict[int, tuple[Segments, bytes]] = {}
    page_size = page_size_bytes()
    reader = BlockReader(pid, memory_of_task(pid), READ_BYTES)
    try:
        for segments in reads:
            if over():
                break
            content = reader.read(segments)
            start, size = segments[0]
            if size == READ_BYTES:  # it has no gaps
                numbers = range(start // CHUNK_BYTES, (start + READ_BYTES) // CHUNK_BYTES)
                found |= {
                    number: (((number * CHUNK_BYTES, CHUNK_BYTES),), ours)
                    for number, ours in zip(numbers, digests_of(content), strict=True)
                }
                continue
            for number, block in blocks_of([(at, size // page_size) for at, size in segments], page_size):
                size = sum(size for _, size in block)
                found[number] = block, digest(content[:size])
                content = content[size:]
    except OSError:
        pass  # see above
    finally:
        reader.close()
    return found


def _runs(pid: int) -> Iterator[tuple[int, int]]:
    size = page_size_bytes()
    with (PROC / str(pid) / "pagemap").open("rb", buffering=0) as pagemap:
        for mapping in procfs.read_maps(pid):
            if not _is_private_memory(mapping):
                continue
            for start in range(mapping.start, mapping.end, PAGES_AT_ONCE * size):
                pages = min(PAGES_AT_ONCE, (mapping.end - start) // size)
                entries = os.pread(pagemap.fileno(), pages * ENTRY_BYTES, start // size * ENTRY_BYTES)
                yield from _runs_of(entries[ENTRY_BYTES - 1 :: ENTRY_BYTES].translate(IN_MEMORY), start, size)


def _runs_of(in_memory: bytes, start: int, size: int) -> Runs:
    """Give the runs of pages that are there: 1 for each in `in_memory`."""
    runs = []
    at = in_memory.find(1)
    while at >= 0:
        end = in_memory.find(0, at)
        end = end if end >= 0 else len(in_memory)
        runs.append((start + at * size, end - at))
        at = in_memory.find(1, end)
    return runs


def _is_private_memory(mapping: Mapping) -> bool:
    return not mapping.shared and (not mapping.path or mapping.path.startswith(("[heap", "[stack", "[anon")))


assert CHUNK_BYTES % page_size_bytes() == 0 == READ_BYTES % CHUNK_BYTES
