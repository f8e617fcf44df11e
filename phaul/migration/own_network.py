"""A network namespace that a workload has for itself: what is needed of the world, and what keeps it from going.

`agent.wiring` names the driver of `OwnNetworks`; `wire` calls it at the right moments; `preflight` asks the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from phaul.migration.facts import (
    AddressFacts,
    DestinationFacts,
    LinkFacts,
    MigrationRequest,
    NetworkFacts,
    Problem,
    SettingFacts,
    WorkloadFacts,
)
from phaul.migration.journal import Data

SETTING_LIMIT_BYTES = 4096
DEVICE_NAME_BYTES = 15  # IFNAMSIZ - 1
# The kernel allows more, but CRIU's options and nft's rules are made of these names.
PLAIN_DEVICE = re.compile(r"[0-9A-Za-z_.@-]{1,15}")
PLAIN_NAME = re.compile(r"[0-9A-Za-z_@][0-9A-Za-z_.@-]{0,254}")
PLAIN_SETTING = re.compile(r"net(/[0-9A-Za-z_@-][0-9A-Za-z_.@-]*)+")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
KINDS = ("veth", "macvlan")


class OwnNetworks(Protocol):
    """The network namespaces of this host that belong to workloads, and what connects them."""

    async def look(self, root_pid: int) -> NetworkFacts:
        """Say how the namespace of a process is connected. Raises `PhaulError`."""
        ...

    async def fence(self, migration_id: str, links: Sequence[LinkFacts]) -> None:
        """Let no packet pass from or to these on this host. Raises `SwitchoverError` with nothing changed."""
        ...

    async def unfence(self, migration_id: str) -> None:
        """Lift that; nothing happens where there is none."""
        ...

    async def fill(self, root_pid: int, settings: Sequence[SettingFacts]) -> tuple[str, ...]:
        """Give the namespace of a process its settings; give those that it does not take."""
        ...

    async def connect(self, links: Sequence[LinkFacts]) -> None:
        """Connect the outer ends that the engine has made. Raises `SwitchoverError` with some not connected."""
        ...

    async def name(self, root_pid: int, names: Sequence[str]) -> None:
        """Give the namespace of a process its names. Raises `PhaulError`."""
        ...

    async def cut(self, root_pid: int, network: NetworkFacts) -> None:
        """Remove the links that the engine has made for a copy which never ran; what is gone is no error.

        Raises `SwitchoverError` where one is in somebody else's use.
        """
        ...

    async def forget(self, migration_id: str, network: NetworkFacts) -> None:
        """The tree is dead: remove the links that stand behind the fence of this migration, and the namespace's names.

        Where there is no such fence nothing is done: then this was done before, or the host was restarted since.
        """
        ...

    async def announce(self, root_pid: int, links: Sequence[LinkFacts]) -> None:
        """Tell the neighbours where its addresses are. Never raises."""
        ...

    async def remove_engine_locks(self, root_pid: int) -> None:
        """Remove the rules by which the engine has locked the namespace of a process, where it could not itself."""
        ...


def network_from(data: Data | None) -> NetworkFacts | None:
    """Read back what `dataclasses.asdict` made of a network, without its problems."""
    if data is None:
        return None
    return NetworkFacts(
        links=tuple(LinkFacts(**{**each, "addresses": tuple(each["addresses"])}) for each in data["links"]),
        names=tuple(data["names"]),
        settings=tuple(SettingFacts(**each) for each in data["settings"]),
        inode=int(data["inode"]),
    )


def at_destination(network: NetworkFacts, devices: Sequence[str], migration_id: str) -> NetworkFacts:
    """Give a network as it shall be on the destination: an outer end whose name is taken there gets another."""
    links: list[LinkFacts] = []
    for number, link in enumerate(network.links):
        if link.kind == "veth" and link.outer in devices:
            free = f"v{number}{migration_id.replace('-', '')}"[:DEVICE_NAME_BYTES]
            link = replace(link, outer=free)
        links.append(link)
    return replace(network, links=tuple(links), problems=())


def oddity(network: NetworkFacts) -> str:
    """Name the first thing of a network that no host of ours would say of one; "" where all is in order."""
    for link in network.links:
        if link.kind not in KINDS:
            return f"the kind {link.kind[:20]!r}"
        odd = [each for each in (link.name, link.outer, link.bridge or "-") if not PLAIN_DEVICE.fullmatch(each)]
        if odd or not MAC.fullmatch(link.mac):
            return f"the device {(odd or [link.mac])[0][:20]!r}"
    for name in network.names:
        if not PLAIN_NAME.fullmatch(name):
            return f"the name {name[:20]!r}"
    for setting in network.settings:
        if not PLAIN_SETTING.fullmatch(setting.name) or len(setting.value) > SETTING_LIMIT_BYTES:
            return f"the setting {setting.name[:40]!r}"
    return ""


def probed(network: NetworkFacts | None) -> tuple[AddressFacts, ...]:
    """Give its addresses, with the devices by which their neighbours are reached on the destination."""
    return tuple(
        AddressFacts(address, int(prefix), link.bridge or link.outer)
        for link in (network.links if network else ())
        for address, _, prefix in (each.partition("/") for each in link.addresses)
    )


def external(network: NetworkFacts | None) -> tuple[str, ...]:
    """Say what CRIU has to be told of the outer ends (criu/net.c, 4.2.1: veth_peer_info, restore_one_macvlan)."""
    return tuple(f"{link.kind}[{link.name}]:{link.outer}" for link in network.links) if network else ()


def is_fenced(network: NetworkFacts) -> bool:
    """Whether the fence keeps every packet away: a macvlan talks to its siblings past the device that it stands on."""
    return all(link.kind == "veth" for link in network.links)


def own_network_problems(
    request: MigrationRequest, workload: WorkloadFacts, destination: DestinationFacts
) -> Iterator[Problem]:
    """Say what keeps the workload's own network namespace from being made again."""
    network, host = workload.network, destination.host
    if network is None:
        return
    yield from network.problems
    if odd := oddity(network):
        yield Problem(
            "link_kind",
            f"The workload's network namespace has {odd}, which phaul does not carry.",
            "Give it a name of letters, digits and `_.@-`.",
        )
    if request.addresses:
        yield Problem(
            "address_of_own_network",
            "The workload has a network namespace of its own, whose addresses move with it: "
            + (", ".join(address for link in network.links for address in link.addresses) or "none")
            + ".",
            "Leave out --address.",
        )
    for link in network.links:
        if link.kind == "veth" and link.bridge not in host.bridges:
            yield Problem(
                "bridge_missing",
                f"The destination {host.host_name} has no bridge {link.bridge}, which the workload's network device "
                f"{link.name} is connected to.",
                f"Make one of that name there, on the same network: `ip link add {link.bridge} type bridge`.",
            )
        elif link.kind == "macvlan" and link.outer not in host.devices:
            yield Problem(
                "device_missing",
                f"The destination {host.host_name} has no network device {link.outer}, on which the workload's "
                f"{link.name} stands as a macvlan.",
                "Give the device that leads to the same network there this name (`ip link set NAME name NEW`).",
            )
        if link.kind == "macvlan" and link.index in host.device_numbers:
            # restore_one_macvlan (criu/net.c, 4.2.1) asks for it in the host's namespace, under its number: the kernel
            # takes that for a change of the host's own device (-95).
            yield Problem(
                "link_number_taken",
                f"The workload's macvlan {link.name} has the number {link.index}, which a network device of the "
                f"destination {host.host_name} has too, and CRIU makes it again under its number.",
                "Make it with a number that no host has: `ip link add link PARENT name NAME index 4711 type macvlan`.",
            )
        if link.mac in host.macs:
            yield Problem(
                "mac_taken",
                f"The destination {host.host_name} has a network device with the MAC {link.mac} of the workload's "
                f"{link.name}.",
                "Remove that device, or give it another MAC.",
            )
        local = sorted({each.partition("/")[0] for each in link.addresses} & set(destination.local_addresses))
        if local:
            yield Problem(
                "address_on_destination",
                f"The address {local[0]} of the workload is on the destination {host.host_name} already.",
                "Remove it there (`ip address del`).",
            )
    for name in sorted(set(network.names) & set(host.network_names)):
        yield Problem(
            "network_name_taken",
            f"The destination {host.host_name} has a network namespace {name} already, as the workload's is called.",
            f"Remove it there: `ip netns delete {name}`.",
        )
