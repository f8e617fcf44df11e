"""Who answers on the wire, on this host: `migration.network_identity.NetworkIdentity` over the host's own kernel.

Made by `agent.wiring`. Decides nothing: the coordinator says what happens when.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from phaul.migration.facts import AddressFacts, ClaimFacts, ConnectionFacts
from phaul.network import claims, criu_locks, dismissal, fence, heard, neighbours
from phaul.network.addresses import HostAddresses

log = structlog.get_logger(__name__)


class HostNetwork:
    """`NetworkIdentity` of the network namespace that the agent lives in.

    Owns no descriptor between two calls. Fences are in the kernel, by the name of their migration; what the addresses
    looked like that were taken off is remembered in memory only.
    """

    def __init__(self) -> None:
        self._addresses = HostAddresses()

    async def addresses(self) -> tuple[AddressFacts, ...]:
        """Every global-scope address of this host with its device."""
        return await self._addresses.listed()

    async def local_addresses(self) -> tuple[str, ...]:
        """Every address that is local to this host, loopback and link scope included."""
        return await self._addresses.local()

    async def fence(self, migration_id: str, addresses: Sequence[AddressFacts]) -> None:
        """Drop every packet from and to these addresses on this host, ARP and neighbour discovery included.

        Replaces a fence that the migration had. Takes 5 to 20 ms. Raises `SwitchoverError` with nothing changed.
        """
        if addresses:
            await fence.engage(migration_id, [each.address for each in addresses])

    async def unfence(self, migration_id: str) -> None:
        """Lift the fence in about a millisecond; nothing happens where there is none."""
        await fence.release(migration_id)

    async def fences(self) -> tuple[str, ...]:
        """Every migration that has a fence here, for cleaning up after a crash."""
        return await fence.list_fences()

    async def claims(self, addresses: Sequence[AddressFacts]) -> tuple[ClaimFacts, ...]:
        """Ask the network who has these addresses; takes up to a tenth of a second."""
        return await claims.claims(addresses) if addresses else ()

    async def heard(self, macs: Sequence[str]) -> tuple[str, ...]:
        """Look for these MACs among what bridges and neighbour tables have learned."""
        return await heard.heard(macs) if macs else ()

    async def add(self, addresses: Sequence[AddressFacts]) -> None:
        """Put the addresses on their devices, without duplicate address detection. All or none (`SwitchoverError`)."""
        await self._addresses.add(addresses)

    async def remove(self, addresses: Sequence[AddressFacts]) -> None:
        """Take the addresses from their devices; one that is gone already is no error. Others of the subnet stay."""
        await self._addresses.remove(addresses)

    async def announce(self, addresses: Sequence[AddressFacts]) -> None:
        """Tell the neighbours, once each. Never waits and never raises: what could not be told is logged.

        By then the workload runs, and a neighbour that was not told finds out by itself.
        """
        for failure in neighbours.announce(addresses):
            log.warning("announce.failed", reason=failure)

    async def dismiss(self, root_pid: int, connections: Sequence[ConnectionFacts]) -> None:
        """Have each client ask after its connection, which this kernel answers with a reset."""
        await dismissal.dismiss(root_pid, connections)

    async def engine_locks(self, root_pid: int, connections: Sequence[ConnectionFacts]) -> tuple[str, ...]:
        """Name the locks of CRIU's that `remove_engine_locks` would remove."""
        return await criu_locks.find_locks(root_pid, connections, self._addresses.taken)

    async def remove_engine_locks(self, root_pid: int, connections: Sequence[ConnectionFacts] = ()) -> None:
        """Remove the packet filter rules that CRIU left behind for a tree that it dumped or restored.

        CRIU's rules do not say whose they are, so the `connections` that the tree had tell; without them only those
        are found that have an end at an address that was taken off this host.
        """
        await criu_locks.remove_locks(root_pid, connections, self._addresses.taken)
