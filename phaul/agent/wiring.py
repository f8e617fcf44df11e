"""The composition root: the only module that names concrete drivers. Called by `agent.server`, and by `phaul doctor`.

It starts nothing and listens nowhere.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import os
import platform
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from phaul import __version__
from phaul.agent.destination import parse_destination
from phaul.agent.hooks import HookDirectory
from phaul.agent.outcomes import OutcomeFiles
from phaul.agent.peer_client import GrpcPeer
from phaul.agent.tls_bridge import LiveConnections
from phaul.agent.tls_tunnel import TlsTunnel, anyone
from phaul.agent.trust import require_loopback_or_insecure
from phaul.config import AgentConfig
from phaul.criu.engine import CriuEngine
from phaul.errors import PhaulError
from phaul.migration.facts import HostFacts
from phaul.migration.host import Host
from phaul.migration.interfaces import Engine
from phaul.migration.network_identity import NetworkIdentity
from phaul.migration.policy import Belonging
from phaul.network import ipvlan
from phaul.network.identity import HostNetwork
from phaul.network.own_links import HostOwnNetworks
from phaul.network.own_network import host_links
from phaul.observe import fault_points
from phaul.system.attendants import Attendants
from phaul.system.cpu_quota import CpuQuota
from phaul.system.kernel import kernel_facts
from phaul.system.memory import available_bytes, has_huge_tmpfs, page_size_bytes
from phaul.system.mounts import mount_memory, mounted_below, unmount_memory
from phaul.system.namespaces import network_names
from phaul.trust.store import TrustStore
from phaul.workloads import belongings, dirty_rate
from phaul.workloads.process import ProcessWorkload

measure_dirty_rate = dirty_rate.measure


async def look_at_belongings(root_pid: int) -> Sequence[Belonging]:
    """What the processes of a workload belong to."""
    return await asyncio.to_thread(belongings.of_tree, root_pid)


class MonotonicClock:
    """`Clock` on the kernel's clocks."""

    def monotonic_us(self) -> int:
        """CLOCK_MONOTONIC."""
        return time.monotonic_ns() // 1000

    def unix_us(self) -> int:
        """CLOCK_REALTIME."""
        return time.time_ns() // 1000

    async def sleep(self, seconds: float) -> None:
        """Let the event loop go on meanwhile."""
        await asyncio.sleep(seconds)


class MemoryRooms:
    """`ImageRooms` as one tmpfs a migration below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def make(self, migration_id: str, size_bytes: int) -> Path:
        """Mount it."""
        path = self._directory / migration_id
        await asyncio.to_thread(mount_memory, path, size_bytes)
        return path

    async def all(self) -> tuple[str, ...]:
        """The names of the mount points."""
        return tuple(sorted({path.name for path in await asyncio.to_thread(mounted_below, self._directory)}))

    async def existing(self, migration_id: str) -> Path | None:
        """A tmpfs outlives the agent that mounted it."""
        path = self._directory / migration_id
        return path if path in await asyncio.to_thread(mounted_below, self._directory) else None

    async def release(self, migration_id: str) -> None:
        """Unmount it; freeing a gigabyte takes the kernel a tenth of a second, so not in the loop's thread."""
        await asyncio.to_thread(unmount_memory, self._directory / migration_id)


def describe(engine: Engine, network: NetworkIdentity) -> Callable[[], Awaitable[HostFacts]]:
    """Give the function that says what this host is and can do."""

    module = ipvlan.IpvlanModule()

    async def facts() -> HostFacts:
        known, addresses, links, has_ipvlan = await asyncio.gather(
            engine.describe(), network.addresses(), host_links(), module.is_known()
        )
        own = [*(["huge_tmpfs"] if has_huge_tmpfs() else []), *([ipvlan.KIND] if has_ipvlan else [])]
        return dataclasses.replace(
            known,
            host_name=socket.gethostname(),
            phaul_version=__version__,
            kernel_release=os.uname().release,
            architecture=platform.machine(),
            page_size_bytes=page_size_bytes(),
            features=tuple(sorted({*known.features, *own})),
            memory_available_bytes=available_bytes(),
            addresses=addresses,
            devices=tuple(each.name for each in links),
            bridges=tuple(each.name for each in links if each.kind == "bridge"),
            macs=tuple(dict.fromkeys(each.mac for each in links if each.mac)),
            network_names=tuple(sorted(network_names())),
            device_numbers=tuple(each.index for each in links),
            device_mtus=tuple(each.mtu for each in links),
            **kernel_facts(),
        )

    return facts


def make_host(config: AgentConfig, attendants: Attendants | None = None) -> Host:
    """Put the drivers of this host together."""
    attendants = attendants or Attendants()
    engine = CriuEngine(config.criu, config.state_dir / "migrations", attendants)
    network = HostNetwork()
    return Host(
        workload=ProcessWorkload(attendants),
        engine=engine,
        network=network,
        own_networks=HostOwnNetworks(),
        rooms=MemoryRooms(config.runtime_dir / "images"),
        throttle=CpuQuota(),
        outcomes=OutcomeFiles(config.state_dir / "outcomes"),
        clock=MonotonicClock(),
        hooks=HookDirectory(config.hooks_dir, config.hook_timeout),
        describe=describe(engine, network),
        reached=fault_points.from_environment(),
    )


def make_connect(
    config: AgentConfig,
    store: TrustStore | None = None,
    live: LiveConnections | None = None,
    why_not: Callable[[Sequence[str]], PhaulError | None] = anyone,
) -> Callable[[str], GrpcPeer]:
    """Give the function that reaches another agent by what a person typed: over TLS where there is a `store`.

    `why_not` says why a host with these names and addresses may not be spoken to.
    """
    connections = live or LiveConnections()

    def connect(typed: str) -> GrpcPeer:
        destination = parse_destination(typed)
        if store is not None:
            tunnel = TlsTunnel(store, connections, destination.host, destination.port, config.runtime_dir, why_not)
            return GrpcPeer(destination, tunnel, pages_in_the_clear=config.page_encryption == "off")
        require_loopback_or_insecure(destination.host, config.insecure, "connect to")
        if refusal := why_not((destination.host,)):
            raise refusal
        return GrpcPeer(destination)

    return connect


async def own_addresses() -> tuple[str, ...]:
    """The addresses of this host that others can reach it at."""
    found = [address.partition("%")[0] for address in await HostNetwork().local_addresses()]
    return tuple(
        address
        for address in found
        if not (ip := ipaddress.ip_address(address)).is_loopback and not ip.is_link_local and not ip.is_multicast
    )


async def describe_host(config: AgentConfig | None = None) -> HostFacts:
    """What this host is and can do, asked without an agent."""
    return await make_host(config or AgentConfig()).describe()
