"""A network namespace that a workload has for itself: what is needed of the world, and what keeps it from going.

`agent.wiring` names the driver of `OwnNetworks`; `wire` calls it at the right moments; `preflight` asks the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from phaul.migration.facts import (
    AddressFacts,
    DestinationFacts,
    HostFacts,
    LinkFacts,
    MigrationRequest,
    NetworkFacts,
    Problem,
    SettingFacts,
    WorkloadFacts,
)
from phaul.migration.journal import Data
from phaul.migration.readdressing import Readdressing

SETTING_LIMIT_BYTES = 4096
DEVICE_NAME_BYTES = 15  # IFNAMSIZ - 1
# The kernel allows more, but CRIU's options and nft's rules are made of these names.
PLAIN_DEVICE = re.compile(r"[0-9A-Za-z_.@-]{1,15}")
PLAIN_NAME = re.compile(r"[0-9A-Za-z_@][0-9A-Za-z_.@-]{0,254}")
PLAIN_SETTING = re.compile(r"net(/[0-9A-Za-z_@-][0-9A-Za-z_.@-]*)+")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
KINDS = ("veth", "macvlan", "ipvlan")
IPVLAN_MODE = re.compile(r"(l2|l3|l3s) (bridge|private|vepa)")


class OwnNetworks(Protocol):
    """The network namespaces of this host that belong to workloads, and what connects them."""

    async def look(self, root_pid: int) -> NetworkFacts:
        """Say how the namespace of a process is connected. Raises `PhaulError`."""
        ...

    async def fence(self, migration_id: str, links: Sequence[LinkFacts], leaving: Sequence[str] = ()) -> None:
        """Let no packet pass from or to these on this host, but those from or to addresses that nobody else will have.

        Raises `SwitchoverError` with nothing changed.
        """
        ...

    async def unfence(self, migration_id: str) -> None:
        """Lift that; nothing happens where there is none."""
        ...

    async def require(self, links: Sequence[LinkFacts]) -> None:
        """See that those which the engine does not make can be made here. Raises `SwitchoverError`, nothing changed."""
        ...

    async def save(self, root_pid: int, images: Path, change: Readdressing) -> None:
        """Write down what the namespace of a process holds, for an engine that leaves it out. Raises `DumpError`.

        It is written down with the addresses that the copy shall have.
        """
        ...

    async def keep(self, migration_id: str, root_pid: int) -> None:
        """Keep a way into the namespace of a process, for when nobody is there any more. Raises `DumpError`."""
        ...

    async def drain(self, migration_id: str, network: NetworkFacts, addresses: Sequence[str]) -> None:
        """The tree is dead: wait until the peers of these addresses have heard so, as long as that makes sense."""
        ...

    async def make(self, root_pid: int, network: NetworkFacts, images: Path) -> tuple[str, ...]:
        """Fill the empty namespace of a process with what was written down; give the settings that it does not take.

        Raises `RestoreError`.
        """
        ...

    async def fill(self, root_pid: int, settings: Sequence[SettingFacts]) -> tuple[str, ...]:
        """Give the namespace of a process its settings; give those that it does not take."""
        ...

    async def connect(self, root_pid: int, links: Sequence[LinkFacts]) -> None:
        """Connect the outer ends that the engine has made; what comes from inside passes from then on, at once.

        Raises `SwitchoverError` with some not connected.
        """
        ...

    async def name(self, root_pid: int, names: Sequence[str]) -> None:
        """Give the namespace of a process its names. Raises `PhaulError`."""
        ...

    async def cut(self, root_pid: int, network: NetworkFacts) -> None:
        """Remove the links that the engine has made for a copy which never ran; what is gone is no error.

        Raises `SwitchoverError` where one is in somebody else's use.
        """
        ...

    async def forget(self, migration_id: str, network: NetworkFacts, *, fenced: bool = True) -> None:
        """The tree is dead: remove the links that stand behind the fence of this migration, and the namespace's names.

        Where there is no such fence nothing is done: then this was done before, or the host was restarted since.
        Without `fenced` there never was one.
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
        links=tuple(
            LinkFacts(
                **{
                    **each,
                    "addresses": tuple(each["addresses"]),
                    **{name: tuple(each.get(name, ())) for name in ("link_local", "gateways", "on_link")},
                }
            )
            for each in data["links"]
        ),
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
        if link.kind == "ipvlan" and not IPVLAN_MODE.fullmatch(link.mode):
            return f"an ipvlan of the mode {link.mode[:20]!r}"
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


def is_left_out(network: NetworkFacts | None) -> bool:
    """Whether the engine leaves out what the namespace holds: CRIU 4.2 does not know ipvlan ("Unsupported link")."""
    return network is not None and any(link.kind == "ipvlan" for link in network.links)


def external(network: NetworkFacts | None) -> tuple[str, ...]:
    """Say what CRIU has to be told of the outer ends (criu/net.c, 4.2.1: veth_peer_info, restore_one_macvlan)."""
    if network is None or is_left_out(network):
        return ()
    return tuple(f"{link.kind}[{link.name}]:{link.outer}" for link in network.links)


def is_fenced(network: NetworkFacts) -> bool:
    """Whether the fence keeps every packet away: all others talk to siblings past the device that they stand on."""
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
    others = [link for link in network.links if link.kind != "ipvlan"]
    if is_left_out(network) and others:
        yield Problem(
            "link_kind",
            f"The workload has the {others[0].kind} {others[0].name} beside an ipvlan, and phaul carries ipvlans only "
            "where there is nothing else.",
            "Connect its network namespace by devices of one kind.",
        )
    for link in network.links:
        if link.kind == "veth" and link.bridge not in host.bridges:
            yield Problem(
                "bridge_missing",
                f"The destination {host.host_name} has no bridge {link.bridge}, which the workload's network device "
                f"{link.name} is connected to.",
                f"Make one of that name there, on the same network: `ip link add {link.bridge} type bridge`.",
            )
        elif link.kind != "veth" and link.outer not in host.devices:
            yield Problem(
                "device_missing",
                f"The destination {host.host_name} has no network device {link.outer}, on which the workload's "
                f"{link.name} stands as {'an' if link.kind == 'ipvlan' else 'a'} {link.kind}.",
                "Give the device that leads to the same network there this name (`ip link set NAME name NEW`).",
            )
        elif link.kind == "ipvlan":
            yield from _ipvlan_problems(link, workload, host)
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


def _ipvlan_problems(link: LinkFacts, workload: WorkloadFacts, host: HostFacts) -> Iterator[Problem]:
    chosen = [each.partition("/")[0] for each in link.link_local]
    used = (each.local_address.partition("%")[0] for each in workload.connections)
    if staying := next((each for each in used if ip_address(each).is_link_local and each not in chosen), ""):
        yield Problem(
            "link_local_in_use",
            f"A socket of the workload uses {staying}, which the kernel has made of the MAC of {link.outer} on this "
            "host, and makes another of on the destination.",
            "Have it use another address of the workload.",
        )
    if "ipvlan" not in host.features:
        yield Problem(
            "ipvlan_missing",
            f"The kernel of the destination {host.host_name} has no ipvlan, which the workload's network device "
            f"{link.name} is.",
            "Install a kernel that has it: `modprobe ipvlan` has to work there.",
        )
    mtu = dict(zip(host.devices, host.device_mtus, strict=False)).get(link.outer, link.mtu)
    if mtu < link.mtu:
        yield Problem(
            "link_mtu",
            f"The workload's network device {link.name} has an MTU of {link.mtu} bytes, and {link.outer} on the "
            f"destination {host.host_name}, on which it would stand, one of {mtu}.",
            f"Give both the same MTU (`ip link set {link.outer} mtu {link.mtu}`).",
        )
