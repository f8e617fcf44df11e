"""Whether what the destination received is what the source holds: the last thing checked before COMMIT.

Called by `workloads.process`. CRIU has no checksum of its own, and a hash of the memory as it lies in the frozen tree
covers all of the way: CRIU's dump, the wire, the destination's files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from phaul.errors import TransferError
from phaul.migration.interfaces import PageImage
from phaul.system.memory import page_size_bytes
from phaul.system.task_memory import digest_of_shared, digest_of_task

NAME = re.compile(r"pagemap-(?P<shared>shmem-)?(?P<number>[0-9]+)\.img")


def differing(pids: Sequence[int], images: Sequence[PageImage]) -> tuple[str, ...]:
    """Give the names of the images whose digest is not that of the memory here. Blocks; see `Workload.differing`."""
    return tuple(image.name for image in images if _digest(pids, image) != image.digest)


def _digest(pids: Sequence[int], image: PageImage) -> bytes:
    match = NAME.fullmatch(image.name)
    if match is None:
        raise TransferError(f"the destination has received an image of the unknown name {image.name!r}")
    number = int(match["number"])
    try:
        if match["shared"]:
            return digest_of_shared(pids, number, image.runs, page_size_bytes())
        return digest_of_task(number, image.runs, page_size_bytes())
    except OSError as error:
        raise TransferError(f"the memory behind {image.name} could not be read to compare it: {error}") from error
