"""What is settled before each dump: how fast its memory may go, and whether it goes compressed.

Used by the coordinator, for the final dump and for rounds before it. Knows what the person asked for and what of this
host the page channel needs to decide; decides nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from phaul.migration.facts import MigrationRequest, WorkloadFacts
from phaul.migration.host import Host
from phaul.migration.interfaces import Workload
from phaul.migration.peer import PageChannel, PeerAgent


@dataclass(slots=True)
class Sending:
    """The page channel of one migration, with what its dumps have in common. The coordinator owns both."""

    channel: PageChannel
    request: MigrationRequest
    workload: Workload
    facts: WorkloadFacts
    device: str  # the network device towards the destination; "" where that is not known
    compressed: bool = False  # any dump so far
    sent_before: int = 0  # over channels that broke; before compression
    delivered_before: int = 0

    @classmethod
    async def over(
        cls, channel: PageChannel, request: MigrationRequest, facts: WorkloadFacts, host: Host, peer: PeerAgent
    ) -> Sending:
        """Find out what is needed beside the arguments."""
        own = await peer.own_address()
        devices = (each.device for each in await host.network.addresses() if each.address == own)
        return cls(channel, request, host.workload, facts, next(devices, ""))

    def through(self, channel: PageChannel) -> Sending:
        """The same through another channel, in the place of one that is closed."""
        return replace(self, channel=channel, sent_before=self.sent_bytes(), delivered_before=self.delivered_bytes())

    def sent_bytes(self) -> int:
        """How much CRIU has sent so far over all channels, before compression."""
        return self.sent_before + self.channel.sent_bytes()

    def delivered_bytes(self) -> int:
        """How much the destination has acknowledged so far on all channels, as it went over the wire."""
        return self.delivered_before + self.channel.delivered_bytes()

    async def begin(self, *, frozen: bool) -> bool:
        """Make the channel ready for a dump whose memory goes while the workload runs, or stands still (`frozen`).

        From here on the channel's descriptor is the one for this dump. Gives whether it goes compressed. Raises
        `TransferError`. Before the freeze: it may take a tenth of a second.
        """
        compressed = await self.channel.begin_dump(
            bandwidth_bytes_per_second=self.request.bandwidth_bytes_per_second,
            compress=self.request.compress,
            device=self.device,
            frozen=frozen,
            sample=partial(self.workload.sample, self.facts),
        )
        self.compressed |= compressed
        return compressed
