"""Hashing a frozen tree's memory while its dump is still on its way, so that little is left to compare afterwards.

Called by `workloads.process`. What will be dumped is only guessed here, from what the kernel says is in memory: a
digest counts only where the guess of a block's pages proves right, and `workloads.memory` hashes the rest. What is read
stands still: every thread is traced by the CRIU that dumps, which is looked at before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from phaul.migration.page_images import Ahead, AheadOfImage
from phaul.system import procfs
from phaul.system.memory import page_size_bytes
from phaul.system.procfs import PROC, Mapping
from phaul.system.task_memory import CHUNK_BYTES, BlockReader, Runs, blocks_of, digests, memory_of_task

ENTRY_BYTES = 8  # of /proc/PID/pagemap
IN_MEMORY = bytes(int(byte & 0xC0 != 0) for byte in range(256))  # of an entry's top byte: present, or swapped
PAGES_AT_ONCE = 1 << 15


def hash_ahead(pids: Sequence[int], over: Callable[[], bool]) -> Ahead:
    """Hash the private anonymous memory of these processes until `over`; nothing where one of them may run. Blocks."""
    if not all(map(_is_traced, pids)):
        return {}
    found: dict[str, AheadOfImage] = {}
    for pid in pids:
        reader = BlockReader(pid, memory_of_task(pid))
        blocks: dict[int, tuple[tuple[tuple[int, int], ...], bytes]] = {}
        try:
            for number, segments in blocks_of(list(_runs(pid)), page_size_bytes()):
                if over():
                    break
                blocks[number] = segments, digests([reader.read(segments)])[0]
        except OSError:
            pass  # whatever it is, it comes up again where every page counts
        finally:
            reader.close()
        found[f"pagemap-{pid}.img"] = blocks
    return found


def _is_traced(pid: int) -> bool:
    """Whether somebody holds every thread: CRIU sends no page before it has stopped them all."""
    try:
        return all(int(procfs.read_status(tid)["TracerPid"]) for tid in procfs.thread_ids(pid))
    except (OSError, KeyError):
        return False


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


assert CHUNK_BYTES % page_size_bytes() == 0
