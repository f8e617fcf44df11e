"""Who answers on the wire, as a protocol: a part of `interfaces`, whose rules hold here too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from phaul.migration.facts import AddressFacts, ClaimFacts, ConnectionFacts


class NetworkIdentity(Protocol):
    """Who answers on the wire: the addresses of this host, and the fence that keeps packets from a workload.

    Addresses and fences are named by the migration they belong to, so that each can be undone after a crash.
    """

    async def addresses(self) -> tuple[AddressFacts, ...]:
        """Every global-scope address of this host with its device."""
        ...

    async def local_addresses(self) -> tuple[str, ...]:
        """Every address that is local to this host, loopback and link scope included."""
        ...

    async def fence(self, migration_id: str, addresses: Sequence[AddressFacts]) -> None:
        """Drop every packet from and to these addresses on this host, ARP and neighbour discovery included."""
        ...

    async def unfence(self, migration_id: str) -> None:
        """Lift the fence; nothing happens where there is none."""
        ...

    async def fences(self) -> tuple[str, ...]:
        """Every migration that has a fence here."""
        ...

    async def claims(self, addresses: Sequence[AddressFacts]) -> tuple[ClaimFacts, ...]:
        """Ask the network who has these addresses. Never raises."""
        ...

    async def heard(self, macs: Sequence[str]) -> tuple[str, ...]:
        """Give those of these MACs that this host has heard others with of late. Never raises."""
        ...

    async def add(self, addresses: Sequence[AddressFacts]) -> None:
        """Put the addresses on their devices, without duplicate address detection. All or none."""
        ...

    async def remove(self, addresses: Sequence[AddressFacts]) -> None:
        """Take the addresses from their devices; one that is gone already is no error."""
        ...

    async def announce(self, addresses: Sequence[AddressFacts]) -> None:
        """Tell the neighbours: gratuitous ARP and unsolicited neighbour advertisements, once each."""
        ...

    async def dismiss(self, root_pid: int, connections: Sequence[ConnectionFacts]) -> None:
        """Have the clients of these connections, which nobody on this host has, be told that they are over.

        Their local addresses are those of the network namespace of a process. Never raises, and harms no connection
        that there is.
        """
        ...

    async def engine_locks(self, root_pid: int, connections: Sequence[ConnectionFacts]) -> tuple[str, ...]:
        """Name the packet filter rules that `remove_engine_locks` would remove. Touches nothing."""
        ...

    async def remove_engine_locks(self, root_pid: int, connections: Sequence[ConnectionFacts] = ()) -> None:
        """Remove the packet filter rules that CRIU left behind for a tree that it dumped, known by its connections."""
        ...
