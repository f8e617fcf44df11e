"""A network namespace that a workload has for itself: what connects it, and which settings it has.

Called by `network.own_links`, which makes it again elsewhere. Looks only.

CRIU carries the namespace with its devices, addresses, routes and rules (criu/net.c, 4.2.1); of a veth pair it makes
the outer end too, down and on no bridge, of a macvlan nothing outside. What is left to phaul: the outer ends, the names
that `ip netns` gives, and all settings but those of devices. One with an ipvlan is left to `network.own_content`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute

from phaul.migration.facts import LinkFacts, NetworkFacts, Problem, SettingFacts
from phaul.migration.own_network import SETTING_LIMIT_BYTES
from phaul.migration.readdressing import gateways_of, on_link_of
from phaul.network import ipvlan, own_content
from phaul.network.addresses import RT_SCOPE_LINK
from phaul.network.route_replay import routes
from phaul.system.namespaces import inside, network_names, network_of
from phaul.system.process import run

SETTINGS = Path("/proc/sys/net")
# The settings of devices are in CRIU's images; what is kept for each neighbour table follows from those of `default`.
LEFT_TO_CRIU = ("conf",)
WRITABLE = 0o200

SCOPES_THAT_STAY = ("host", "link")
EVERYWHERE = {"lo", *own_content.OF_MODULES}


@dataclass(frozen=True, slots=True)
class HostLink:
    """A device of the host's own namespace."""

    name: str
    kind: str  # "" of a physical one
    mac: str
    mtu: int
    index: int
    master: int  # index of the bridge or bond that it is a port of; 0 for none
    peer_index: int  # of a veth pair, its other end in `peer_namespace`
    peer_namespace: int  # a number that the host's namespace gives to others; -1 for itself


async def host_links() -> tuple[HostLink, ...]:
    """Give the devices of this host."""
    found: list[HostLink] = []
    async with AsyncIPRoute() as kernel:
        async for message in await kernel.link("dump"):
            information = message.get_attr("IFLA_LINKINFO")
            namespace = message.get_attr("IFLA_LINK_NETNSID")
            found.append(
                HostLink(
                    name=message.get_attr("IFLA_IFNAME"),
                    kind=(information.get_attr("IFLA_INFO_KIND") or "") if information else "",
                    mac=message.get_attr("IFLA_ADDRESS") or "",
                    mtu=message.get_attr("IFLA_MTU") or 0,
                    index=message["index"],
                    master=message.get_attr("IFLA_MASTER") or 0,
                    peer_index=message.get_attr("IFLA_LINK") or 0,
                    peer_namespace=-1 if namespace is None else namespace,
                )
            )
    return tuple(found)


async def look(root_pid: int) -> NetworkFacts:
    """Say how the namespace of a process is connected, and what of that cannot be made again elsewhere.

    Nothing of one that lives in the agent's: then another process of its tree does not, for which it is refused.
    Raises `CommandError` or `OSError` where it cannot be looked into.
    """
    if os.stat(network_of(root_pid)).st_ino == os.stat("/proc/self/ns/net").st_ino:  # noqa: PTH116 -- links of /proc
        return NetworkFacts()
    shown = await run(["nsenter", f"--net={network_of(root_pid)}", "ip", "-json", "-details", "address", "show"])
    outside = await host_links()
    async with AsyncIPRoute() as kernel:
        number = (await kernel.get_netnsid(pid=root_pid))["nsid"]
    home = await ipvlan.number_of_host(network_of(root_pid))
    found_routes = inside(network_of(root_pid), routes)
    links: list[LinkFacts] = []
    problems: list[Problem] = []
    for device in json.loads(shown.stdout):
        if device["ifname"] in EVERYWHERE:
            continue
        found = _judge(device, outside, number, home)
        if isinstance(found, Problem):
            problems.append(found)
        elif found.kind == ipvlan.KIND:
            links.append(replace(found, link_local=await _chosen_link_local(root_pid, found.index)))
        else:
            links.append(found)
    namespace = network_of(root_pid)
    inode = namespace.stat().st_ino
    return NetworkFacts(
        links=tuple(_with_routes(each, found_routes) for each in links),
        names=tuple(sorted(name for name, its in network_names().items() if its == inode)),
        settings=inside(namespace, _read_settings),
        problems=tuple(problems),
        inode=inode,
    )


def _judge(device: dict[str, Any], outside: Sequence[HostLink], namespace: int, home: int) -> LinkFacts | Problem:
    """Say what stands for a device on the host, or why it cannot be made again.

    Args:
        namespace: the number of its namespace in the host's.
        home: the number of the host's in its namespace.
    """
    name, mode = device["ifname"], ""
    kind = device.get("linkinfo", {}).get("info_kind", "")
    match kind:
        case "veth":
            twin = next((each for each in outside if _is_peer(each, device, namespace)), None)
            if twin is None:
                return Problem(
                    "link_not_on_host",
                    f"The other end of the workload's network device {name} is not on this host, but in yet another "
                    "network namespace.",
                    "Connect it to a bridge of the host itself.",
                )
            bridge = next((each for each in outside if each.index == twin.master), None)
            if bridge is None or bridge.kind != "bridge":
                return Problem(
                    "link_without_bridge",
                    f"The workload's network device {name} ends on this host in {twin.name}, which is on no bridge, so "
                    "that it is not known what leads to it on another host.",
                    f"Put it on a bridge that both hosts have: `ip link set {twin.name} master BRIDGE`.",
                )
            if _filters_vlans(bridge.name):
                return Problem(
                    "bridge_with_vlans",
                    f"The bridge {bridge.name}, on which the workload's network device {name} is, filters VLANs, and "
                    "phaul does not carry those of a port.",
                    "Use a bridge of its own for each VLAN.",
                )
            outer, bridge_name, mtu = twin, bridge.name, twin.mtu
        case "macvlan":
            below = next((each for each in outside if each.index == device.get("link_index")), None)
            if below is None:
                below = next((each for each in outside if each.name == device.get("link")), None)
            mode = device["linkinfo"].get("info_data", {}).get("mode", "")
            if below is None or mode in ("passthru", "source"):
                return Problem(
                    "link_kind",
                    f"The workload's network device {name} is a macvlan "
                    + (f"of the mode {mode}." if below else "on a device that this host does not have."),
                    "Use the mode `bridge`, on a device of the host.",
                )
            outer, bridge_name, mtu = below, "", 0
        case ipvlan.KIND:
            on_host = home >= 0 and device.get("link_netnsid") == home
            below = next((each for each in outside if on_host and each.index == device.get("link_index")), None)
            if below is None:
                return Problem(
                    "link_kind",
                    f"The workload's network device {name} is an ipvlan on a device that this host does not have.",
                    "Use one on a device of the host.",
                )
            outer, bridge_name, mtu, mode = below, "", device["mtu"], ipvlan.mode_of(device)
        case _:
            return Problem(
                "link_kind",
                f"The workload has a network device {name} of the kind {kind or 'physical'} for itself, which cannot "
                "be made again on another host.",
                "Connect its network namespace by a veth pair on a bridge, a macvlan or an ipvlan.",
            )
    return LinkFacts(
        name=name,
        kind=kind,
        mac=device["address"],
        outer=outer.name,
        outer_index=outer.index,
        index=device["ifindex"],
        bridge=bridge_name,
        mtu=mtu,
        addresses=tuple(
            f"{each['local']}/{each['prefixlen']}"
            for each in device["addr_info"]
            if each["scope"] not in SCOPES_THAT_STAY
        ),
        mode=mode,
    )


async def _chosen_link_local(root_pid: int, index: int) -> tuple[str, ...]:
    moving = await own_content.moving_addresses(network_of(root_pid))
    here = (each for each in moving if each.index == index and each.scope == RT_SCOPE_LINK)
    return tuple(f"{each.address}/{each.prefix_length}" for each in here)


def _with_routes(link: LinkFacts, records: Sequence[bytes]) -> LinkFacts:
    gateways = (gateway for record in records for index, gateway in gateways_of(record) if index == link.index)
    on_link = (found[1] for record in records if (found := on_link_of(record)) and found[0] == link.index)
    return replace(link, gateways=tuple(dict.fromkeys(gateways)), on_link=tuple(dict.fromkeys(on_link)))


def _is_peer(link: HostLink, device: dict[str, Any], namespace: int) -> bool:
    return (
        link.kind == "veth"
        and link.index == device.get("link_index")
        and link.peer_index == device["ifindex"]
        and link.peer_namespace == namespace
    )


def _filters_vlans(bridge: str) -> bool:
    try:
        return Path(f"/sys/class/net/{bridge}/bridge/vlan_filtering").read_text().strip() != "0"
    except OSError:  # a kernel without VLANs
        return False


def _setting_files() -> Iterator[Path]:
    for directory in sorted(SETTINGS.iterdir()):
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not set(path.relative_to(SETTINGS).parts) & set(LEFT_TO_CRIU):
                yield path


def _read_settings() -> tuple[SettingFacts, ...]:
    """Read every setting of the namespace that this thread is in, as far as it can be written."""
    found: list[SettingFacts] = []
    for path in _setting_files():
        try:
            if path.stat().st_mode & WRITABLE:
                value = path.read_text()[: SETTING_LIMIT_BYTES + 1].rstrip("\n")
                if len(value) <= SETTING_LIMIT_BYTES:
                    found.append(SettingFacts(str(path.relative_to("/proc/sys")), value))
        except (OSError, UnicodeDecodeError):  # some can only be written, some only while a thing is set up
            continue
    return tuple(found)
