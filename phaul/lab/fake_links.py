"""The network namespaces of a made-up machine's workloads: links that are connected or not, and fences around them.

Used by `lab.fakes` and by the crash model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phaul.lab.fake_machine import FakeMachine
from phaul.migration.facts import LinkFacts, NetworkFacts, SettingFacts
from phaul.migration.readdressing import Readdressing


class FakeOwnNetworks:
    """`OwnNetworks` on a machine: links are names, of which each is connected or not."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    async def look(self, root_pid: int) -> NetworkFacts:
        """What the tree was given."""
        return self._machine.trees[root_pid].network or NetworkFacts()

    async def fence(self, migration_id: str, links: Sequence[LinkFacts], leaving: Sequence[str] = ()) -> None:
        """Raise a fence."""
        self._machine.act("own_networks.fence")
        self._machine.link_fences[migration_id] = tuple(links)

    async def unfence(self, migration_id: str) -> None:
        """Lift it."""
        self._machine.act("own_networks.unfence")
        self._machine.link_fences.pop(migration_id, None)

    async def require(self, links: Sequence[LinkFacts]) -> None:
        """All can be made."""
        self._machine.act("own_networks.require")

    async def save(self, root_pid: int, images: Path, change: Readdressing) -> None:
        """Note it."""
        self._machine.act("own_networks.save")

    async def keep(self, migration_id: str, root_pid: int) -> None:
        """Note it."""
        self._machine.act("own_networks.keep")

    async def drain(self, migration_id: str, network: NetworkFacts, addresses: Sequence[str]) -> None:
        """They have heard, if the fence lets them."""
        self._machine.act("own_networks.drain")

    async def make(self, root_pid: int, network: NetworkFacts, images: Path) -> tuple[str, ...]:
        """All settings are taken."""
        self._machine.act("own_networks.make")
        return ()

    async def fill(self, root_pid: int, settings: Sequence[SettingFacts]) -> tuple[str, ...]:
        """All are taken."""
        self._machine.act("own_networks.fill")
        return ()

    async def connect(self, root_pid: int, links: Sequence[LinkFacts]) -> None:
        """They stand on the machine from here on."""
        self._machine.act("own_networks.connect")
        self._machine.links |= {each.outer for each in links}

    async def name(self, root_pid: int, names: Sequence[str]) -> None:
        """Note them."""
        self._machine.act("own_networks.name")

    async def cut(self, root_pid: int, network: NetworkFacts) -> None:
        """None of them is left."""
        self._machine.act("own_networks.cut")
        self._machine.links -= {each.outer for each in network.links}

    async def forget(self, migration_id: str, network: NetworkFacts, *, fenced: bool = True) -> None:
        """None is left of those behind the fence."""
        self._machine.act("own_networks.forget")
        found = self._machine.link_fences.get(migration_id, ()) if fenced else network.links
        self._machine.links -= {each.outer for each in found}

    async def announce(self, root_pid: int, links: Sequence[LinkFacts]) -> None:
        """Note it."""
        self._machine.act("own_networks.announce")
        self._machine.announced += [address for each in links for address in each.addresses]

    async def remove_engine_locks(self, root_pid: int) -> None:
        """There are none."""
        self._machine.act("own_networks.remove_engine_locks")
