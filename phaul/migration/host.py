"""The drivers of one host, put together: what a coordinator, an arrival or a settlement works with.

Made by `agent.wiring`; tests bring fakes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from phaul.migration.events import Phase, Role
from phaul.migration.facts import HostFacts
from phaul.migration.hooks import Hooks, NoHooks
from phaul.migration.interfaces import Clock, Engine, ImageRooms, OutcomeStore, Workload
from phaul.migration.network_identity import NetworkIdentity
from phaul.migration.own_network import OwnNetworks
from phaul.migration.throttle import Throttle


async def _no_fault(role: Role, phase: Phase) -> None:
    """Nothing happens at a fault point unless `observe.fault_points` was asked to."""


@dataclass(frozen=True, slots=True)
class Host:
    """The drivers of the host on which a coordinator or a destination runs."""

    workload: Workload
    engine: Engine
    network: NetworkIdentity
    own_networks: OwnNetworks
    rooms: ImageRooms
    throttle: Throttle
    outcomes: OutcomeStore
    clock: Clock
    describe: Callable[[], Awaitable[HostFacts]]
    peer_port: Callable[[], int] = lambda: 0  # where this host's agent listens for others; 0 before it does
    hooks: Hooks = field(default_factory=NoHooks)
    reached: Callable[[Role, Phase], Awaitable[None]] = _no_fault  # told as each phase begins: a point for faults
