"""Whether what arrived is what the frozen tree holds: the last thing asked before COMMIT. Run by the coordinator.

Most of the hashing is done beside the dump, as soon as memory is seen on its way, which is when every task stands
still; the comparison itself runs beside the restore.
"""

from __future__ import annotations

import asyncio
from functools import partial

from phaul.errors import TransferError
from phaul.migration.facts import WorkloadFacts
from phaul.migration.host import Host
from phaul.migration.interfaces import TreeHandle
from phaul.migration.page_images import Ahead
from phaul.migration.peer import PageChannel, PeerAgent
from phaul.units import MIB

SMALLEST_BYTES = 64 * MIB  # below, what is left to hash after the dump takes no time to speak of
LOOK_SECONDS = 0.002  # between two looks at whether memory is on its way


class Verification:
    """The comparison for one final dump, about to begin over `channel`. Owns the task that hashes beside it."""

    def __init__(
        self, migration_id: str, facts: WorkloadFacts, host: Host, peer: PeerAgent, channel: PageChannel
    ) -> None:
        self._id = migration_id
        self._facts = facts
        self._host = host
        self._peer = peer
        self._hashing: asyncio.Task[Ahead] | None = None
        self._flows = False
        if facts.memory_bytes >= SMALLEST_BYTES:
            self._hashing = asyncio.create_task(self._hash_ahead(channel, channel.sent_bytes()))

    async def run(self, tree: TreeHandle) -> None:
        """Compare, once the dump is over. Raises `TransferError` where anything differs."""
        images = await self._peer.received_pages(self._id)
        theirs = self._peer.page_digests(self._id)
        fetch = partial(self._peer.received_chunk, self._id)
        ahead: Ahead = await self._hashing if self._hashing is not None and self._flows else {}
        differing = await self._host.workload.differing(tree, images, theirs, fetch, ahead)
        if differing:
            raise TransferError(
                f"the memory was damaged on its way: {', '.join(differing)} on the destination differs from the source",
                hint="Nothing of it was used. If it happens again, test the memory and network of both hosts.",
            )

    async def end(self) -> None:
        """Leave off hashing."""
        if self._hashing is not None:
            self._hashing.cancel()
            await asyncio.wait([self._hashing])

    async def _hash_ahead(self, channel: PageChannel, sent_before: int) -> Ahead:
        while channel.sent_bytes() <= sent_before:
            await self._host.clock.sleep(LOOK_SECONDS)
        self._flows = True
        return await self._host.workload.hash_ahead(self._facts)
