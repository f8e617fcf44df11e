"""Reading a task's memory out of images as CRIU's restore does: for the fake engine, and to check the real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from phaul.criu.images import COMMON_MAGIC, PAGEMAP_MAGIC, decode_records
from phaul.rpc.criu import images_pb2
from phaul.transfer.page_protocol import PageFlag
from phaul.transfer.page_store import PARENT_LINK


def read_pages(directory: Path, pagemap_name: str, page_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Give (address, content) of every page, ascending; what a directory does not have is taken from its parent.

    Raises ValueError where the images contradict themselves, `FileNotFoundError` where one is missing.
    """
    head, *records = decode_records((directory / pagemap_name).read_bytes(), (COMMON_MAGIC, PAGEMAP_MAGIC))
    content = memoryview((directory / f"pages-{images_pb2.PagemapHead.FromString(head).pages_id}.img").read_bytes())
    entries = list(map(images_pb2.PagemapEntry.FromString, records))
    above: dict[int, bytes] = {}
    if any(entry.flags & PageFlag.PARENT for entry in entries):
        above = dict(read_pages(directory / PARENT_LINK, pagemap_name, page_bytes))
    offset = passed = 0
    for entry in entries:
        if entry.vaddr < passed:
            raise ValueError(f"the entries of {pagemap_name} do not ascend at {entry.vaddr:#x}")
        passed = entry.vaddr + entry.nr_pages * page_bytes
        for address in range(entry.vaddr, passed, page_bytes):
            if entry.flags & PageFlag.PRESENT:
                yield address, bytes(content[offset : offset + page_bytes])
                offset += page_bytes
            elif entry.flags & PageFlag.PARENT:
                if address not in above:
                    raise ValueError(f"the parent of {directory} has no page {address:#x} of {pagemap_name}")
                yield address, above[address]
