"""Who answers on the wire for one workload: its addresses on the host, or the links of a network namespace of its own.

`SourceWire` is used by the coordinator and by the settlement after a crash, `DestinationWire` by `destination`. They
decide what is done to whom; when, their callers do. Whoever is allowed to run is the one without a fence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phaul.errors import PhaulError, SwitchoverError
from phaul.migration.address_rules import normal
from phaul.migration.facts import DIRECTORY, AddressFacts, ConnectionFacts, NetworkFacts, WorkloadFacts
from phaul.migration.host import Host
from phaul.migration.journal import Data
from phaul.migration.own_network import external, is_left_out, network_from
from phaul.migration.peer import Reservation
from phaul.migration.plan import planned_addresses, planned_connections
from phaul.migration.readdressing import Readdressing, readdressing_from
from phaul.migration.undo import UndoStack

# Announcements are not acknowledged, so that they are said more than once, with growing gaps: as many and as far apart
# as QEMU does after a migration (its parameters announce-initial, -max, -rounds and -step, and their defaults).
ANNOUNCE_INITIAL_SECONDS = 0.05
ANNOUNCE_MAX_SECONDS = 0.55
ANNOUNCE_ROUNDS = 5
ANNOUNCE_STEP_SECONDS = 0.1


def announce_again_seconds() -> tuple[float, ...]:
    """How long to wait before each announcement after the first."""
    gaps = (ANNOUNCE_INITIAL_SECONDS + ANNOUNCE_STEP_SECONDS * round_ for round_ in range(ANNOUNCE_ROUNDS - 1))
    return tuple(min(gap, ANNOUNCE_MAX_SECONDS) for gap in gaps)


class SourceWire:
    """The wire of a workload that leaves this host.

    Args:
        open_to_the_end: no connection of it is carried, so that there is nothing to be kept from its clients.
    """

    def __init__(
        self,
        host: Host,
        migration_id: str,
        root_pid: int,
        addresses: Sequence[AddressFacts],
        connections: Sequence[ConnectionFacts],
        own: NetworkFacts | None,
        change: Readdressing,
        *,
        open_to_the_end: bool = False,
    ) -> None:
        self._open_to_the_end = open_to_the_end
        self._network = host.network
        self._networks = host.own_networks
        self._workload = host.workload
        self._id = migration_id
        self._root_pid = root_pid
        self._connections = connections
        self._own = own
        self.addresses = tuple(addresses)
        self.change = change

    @classmethod
    def planned(cls, host: Host, migration_id: str, plan: Data) -> SourceWire:
        """Make it of what the journal has kept."""
        return cls(
            host,
            migration_id,
            int(plan["root_pid"]),
            planned_addresses(plan),
            planned_connections(plan),
            network_from(plan.get("network")),
            readdressing_from(plan.get("readdressing")),
            open_to_the_end=str(plan["destination"]).startswith(DIRECTORY),
        )

    @property
    def name(self) -> str:
        """What is left behind where `take_back` fails."""
        return "the addresses " + ", ".join(map(str, self.addresses)) if self.addresses else "the workload's links"

    async def save(self, images: Path) -> None:
        """The workload is about to freeze: write down beside its images what the engine leaves out."""
        if is_left_out(self._own):
            await self._networks.save(self._root_pid, images, self.change)
        if self._own:
            # To take a namespace down the kernel holds the lock that all network devices wait for, a tenth of a second
            # at times (net/core/net_namespace.c, cleanup_net). Kept, it goes in CLEANUP and not with the tree, which is
            # when the copy is connected, and the destination may be in the same kernel.
            await self._networks.keep(self._id, self._root_pid)

    async def fence(self) -> None:
        """The workload is about to freeze: let nothing in or out. Raises `SwitchoverError`."""
        if self._open_to_the_end:
            return
        if self.addresses:
            await self._network.fence(self._id, self.addresses)
        if self._own and self._own.links:
            await self._networks.fence(self._id, self._own.links, self.change.leaving)

    async def stranded(self, facts: WorkloadFacts) -> tuple[ConnectionFacts, ...]:
        """Say whom the destination has to tell that a connection is over, as its address is there then.

        Those of an address that nobody has any more hear it from the source's kernel, as the tree dies.
        """
        lost = await self._workload.unaccepted(facts, closing=bool(self.change.places))
        return tuple(each for each in lost if normal(each.local_address) not in self.change.leaving)

    async def unfence(self) -> None:
        """The workload runs here, or nothing of it is left."""
        await self._network.unfence(self._id)
        if self._own and self._own.links:
            await self._networks.unfence(self._id)

    async def give_up(self) -> None:
        """Take the addresses off this host. The links of a namespace stay behind their fence until the tree is dead."""
        if self.addresses:
            try:
                await self._network.remove(self.addresses)
            except PhaulError as error:
                raise SwitchoverError(
                    f"the addresses could not be taken off the source: {error.message}", hint=error.hint
                ) from error

    async def take_back(self) -> None:
        """The opposite, with the fence lifted."""
        if self.addresses:
            await self._network.add(self.addresses)
        await self.unfence()
        await self.announce()

    async def announce(self) -> None:
        """Tell the neighbours that it is here."""
        if self.addresses:
            await self._network.announce(self.addresses)
        if self._own and self._own.links:
            await self._networks.announce(self._root_pid, self._own.links)

    async def leave(self) -> None:
        """The tree is dead: nothing of it may answer here any more, also in a namespace that others keep alive."""
        if self._own:
            if self.change.leaving:
                await self._networks.drain(self._id, self._own, self.change.leaving)
            await self._networks.forget(self._id, self._own, fenced=not self._open_to_the_end)
        await self.unfence()

    async def remove_locks(self) -> None:
        """Remove the rules that the engine made."""
        if self._own:
            await self._networks.remove_engine_locks(self._root_pid)
        else:
            await self._network.remove_engine_locks(self._root_pid, self._connections)


class DestinationWire:
    """The wire of a workload that comes to this host."""

    def __init__(self, host: Host, reservation: Reservation) -> None:
        self._network = host.network
        self._networks = host.own_networks
        self._id = reservation.migration_id
        self._root_pid = reservation.root_pid
        self._addresses = reservation.addresses
        self._own = reservation.network
        self.refused: tuple[str, ...] = ()  # settings that the copy's namespace did not take
        self.unaccepted: tuple[ConnectionFacts, ...] = ()  # that the copy does not have

    @property
    def external(self) -> tuple[str, ...]:
        """What the engine has to be told of the outer ends."""
        return external(self._own)

    def queue_undo(self, undo: UndoStack) -> None:
        """Queue all that may have to be undone."""
        if self._addresses or self._own:
            undo.add("the fence on the destination", self.unfence)
        if self._addresses:
            undo.add("addresses on the destination", lambda: self._network.remove(self._addresses))
        if self._own:
            undo.add("network devices on the destination", self.cut)

    async def take(self, undo: UndoStack) -> None:
        """Put up the fence, and the addresses behind it. Raises `SwitchoverError`."""
        if self._own and is_left_out(self._own):
            await self._networks.require(self._own.links)
        self.queue_undo(undo)
        try:
            await self.fence()
            if self._addresses:
                await self._network.add(self._addresses)
        except PhaulError as error:
            raise SwitchoverError(
                f"the addresses could not be put on the destination: {error.message}", hint=error.hint
            ) from error

    async def fence(self) -> None:
        """Let nothing in or out; the outer end of a veth pair is not there, or down, before `let_in`."""
        if self._addresses:
            await self._network.fence(self._id, self._addresses)
        if links := [link for link in (self._own.links if self._own else ()) if link.kind != "veth"]:
            await self._networks.fence(self._id, links)

    async def unfence(self) -> None:
        """The opposite."""
        await self._network.unfence(self._id)
        if self._own and self._own.links:
            await self._networks.unfence(self._id)

    @property
    def empty_network(self) -> bool:
        """Whether the engine makes the copy's namespace, but nothing in it."""
        return is_left_out(self._own)

    async def set_up(self, root_pid: int, images: Path) -> None:
        """The copy's namespace is there, and nothing in it: give it its settings, and what the engine leaves out."""
        if self._own and self.empty_network:
            self.refused = await self._networks.make(root_pid, self._own, images)
        elif self._own:
            self.refused = await self._networks.fill(root_pid, self._own.settings)

    async def let_in(self) -> str:
        """The source tree is dead: packets may come. What cannot be connected is told: the copy runs all the same."""
        await self.unfence()
        try:
            if self._own:
                await self._networks.connect(self._root_pid, self._own.links)
        except PhaulError as error:
            return f"the workload runs, but is not connected: {error.message} {error.hint}"
        return ""

    async def settle_in(self) -> tuple[str, ...]:
        """The copy runs: tell the neighbours, and give its namespace its names. Gives what went wrong."""
        wrong: list[str] = []
        try:
            await self.announce()
        except PhaulError as error:
            wrong.append(f"the neighbours could not be told of the new place: {error.message}")
        try:
            if self._own:
                await self._networks.name(self._root_pid, self._own.names)
        except PhaulError as error:
            wrong.append(f"the workload's network namespace could not be given its name: {error.message}")
        return tuple(wrong)

    async def announce(self) -> None:
        """Tell the neighbours; and then the clients of connections that the copy does not have, who may only wait.

        What the source's kernel has said to them, its fence has held back.
        """
        if self._addresses:
            await self._network.announce(self._addresses)
        if self._own:
            await self._networks.announce(self._root_pid, self._own.links)
        here = {normal(each.address) for each in self._addresses}
        stranded = [each for each in self.unaccepted if self._own or normal(each.local_address) in here]
        if stranded:
            await self._network.dismiss(self._root_pid, stranded)

    async def cut(self) -> None:
        """A copy is thrown away, or was: nothing of it may answer, and no name of a device be taken."""
        if self._own:
            await self._networks.cut(self._root_pid, self._own)
