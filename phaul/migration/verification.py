"""Whether what arrived is what the tree holds: the last thing asked before COMMIT. Run by the coordinator.

Every page that came is hashed on both hosts, once it lies on the destination. After a round of pre-copy that is done
while the tree runs: a block that is the same on both is right as long as the kernel does not note that it was written,
and then it comes again. What differs was written meanwhile, as far as anybody knows: it is looked at again after the
next round. So the freeze is left with what came in the final dump, and what was never seen to be the same.

In the first dump everything comes. Its pages are hashed here ahead of it, because hashing takes long: see
`workloads.ahead`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from phaul.errors import TransferError
from phaul.migration.facts import WorkloadFacts
from phaul.migration.host import Host
from phaul.migration.interfaces import TreeHandle
from phaul.migration.page_images import Ahead, Block, PageImage
from phaul.migration.peer import PeerAgent
from phaul.units import MIB

SMALLEST_BYTES = 64 * MIB  # below, what is to be hashed after the dump takes no time to speak of


class Verification:
    """The comparison for one migration. Owns the task that hashes ahead, which begins at once."""

    def __init__(self, migration_id: str, facts: WorkloadFacts, host: Host, peer: PeerAgent) -> None:
        self._id = migration_id
        self._facts = facts
        self._host = host
        self._peer = peer
        self._pending: tuple[PageImage, ...] = ()  # came, and was never seen to be the same on both hosts
        self._ahead: Ahead = {}
        self._hashing: asyncio.Task[Ahead] | None = None
        if facts.memory_bytes >= SMALLEST_BYTES:
            self._hashing = asyncio.create_task(host.workload.hash_ahead(facts))

    async def ready(self) -> None:
        """Wait until what can be hashed ahead is."""
        hashing, self._hashing = self._hashing, None
        if hashing is not None:
            self._ahead = await hashing

    async def after_round(self) -> None:
        """Compare what came in a round, while the tree runs. Raises `PhaulError` where the destination is gone."""
        differing = await self._differing([task.pid for task in self._facts.tasks])
        self._pending = _images(differing)
        self._ahead = {}

    def begin_anew(self) -> None:
        """What has come is forgotten over there, and all of it comes again."""
        self._pending = ()

    async def run(self, tree: TreeHandle) -> None:
        """Compare what is left, once the final dump is over. Raises `TransferError` where anything differs."""
        for block in await self._differing(tree.pids):
            content = await self._peer.received_content(self._id, block.name, block.runs)
            if await self._host.workload.differs(tree, block, content):
                raise TransferError(
                    f"the memory was damaged on its way: {block.name} on the destination differs from the source",
                    hint="Nothing of it was used: migrate again. CRIU itself now and then does this to a busy workload "
                    "of many processes. If it always happens, test the memory and network of both hosts.",
                )

    async def end(self) -> None:
        """Leave off hashing."""
        if self._hashing is not None:
            self._hashing.cancel()
            await asyncio.wait([self._hashing])

    async def _differing(self, pids: Sequence[int]) -> tuple[Block, ...]:
        await self.ready()
        images = await self._peer.hashed_pages(self._id, self._pending)
        return await self._host.workload.differing(pids, images, self._ahead)


def _images(blocks: Sequence[Block]) -> tuple[PageImage, ...]:
    runs: dict[str, list[tuple[int, int]]] = {}
    for block in blocks:
        runs.setdefault(block.name, []).extend(block.runs)
    return tuple(PageImage(name, tuple(sorted(found))) for name, found in runs.items())
