"""What a network namespace holds, taken along by phaul: for those with a device that CRIU does not know.

Called by `network.own_links`. CRIU is told to leave the namespace empty then (`--empty-ns net`), and phaul does for it
what CRIU does for others (criu/net.c, 4.2.1): devices, addresses, routes, rules, settings and the packet filter.
Conntrack's entries and sockets are CRIU's all the same. Only looks on the source.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import errno
import json
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from phaul.errors import DumpError, RestoreError
from phaul.migration.facts import NetworkFacts, SettingFacts
from phaul.migration.own_network import PLAIN_DEVICE, oddity
from phaul.migration.readdressing import SMALLEST_SUBNET, STAYING, Readdressing, route_record, rule_record
from phaul.network import ipvlan
from phaul.network.addresses import Entry, add_entry, entries_of
from phaul.network.route_replay import add_routes, routes, rules, set_rules
from phaul.system.namespaces import inside, network_of
from phaul.system.process import CommandError, run

T = TypeVar("T")

IMAGE = "own-network.img"  # beside CRIU's images, and carried with them
CONFIGURATION = Path("/proc/sys/net")
IFAPROT_KERNEL_LL = 3  # linux/if_addr.h
LOOPBACK = "::1"
# Devices that every namespace has once their module is loaded, and that CRIU passes over (criu/net.c, 4.2.1).
OF_MODULES = {"gre0", "gretap0", "sit0"}
# What takes a rule set on its standard input, and gives one.
FILTERS = {
    "nft": (["nft", "-f", "-"], ["nft", "list", "ruleset"]),
    # Not flushed: CRIU's own lock may stand there.
    "iptables": (["iptables-legacy-restore", "--noflush"], ["iptables-legacy-save"]),
    "ip6tables": (["ip6tables-legacy-restore", "--noflush"], ["ip6tables-legacy-save"]),
}
LEGACY_TABLES = {"iptables": Path("/proc/net/ip_tables_names"), "ip6tables": Path("/proc/net/ip6_tables_names")}
RESET_WHEN_UP = "/mtu"  # of IPv6 (net/ipv6/addrconf.c, addrconf_notify, 6.12)
# For a namespace to go that a restore has made before: no two ipvlans on one device have the same address.
VANISH_SECONDS = 5.0
LOOK_SECONDS = 0.02


async def save(root_pid: int, images: Path, change: Readdressing = STAYING) -> None:
    """Write down what the namespace of a process holds, beside its images, as it shall be there. Raises `DumpError`."""
    try:
        (images / IMAGE).write_text(json.dumps(await _content(root_pid, change)))
    except (CommandError, NetlinkError, OSError, ValueError) as error:
        raise DumpError(
            f"what the workload's network namespace holds could not be read: {_reason(error)}", detail=_detail(error)
        ) from error


async def make(
    root_pid: int, network: NetworkFacts, images: Path, write: Callable[[int, Sequence[SettingFacts]], tuple[str, ...]]
) -> tuple[str, ...]:
    """Fill the empty namespace of a process; give the settings that it does not take, as `write` says.

    Raises `RestoreError` with some of it made.
    """
    namespace = network_of(root_pid)
    try:
        content = json.loads((images / IMAGE).read_text())
        settings = tuple(SettingFacts(name, value) for name, value in content["configuration"])
        if odd := oddity(NetworkFacts(settings=settings)):
            raise ValueError(f"it has {odd}")
        if odd_names := [name for name in content["up"] if not PLAIN_DEVICE.fullmatch(name)]:
            raise ValueError(f"it has a device of an odd name: {odd_names[0]!r}")
        for link in network.links:
            await ipvlan.make(link, namespace)
        refused = await asyncio.to_thread(write, root_pid, network.settings + settings)
        addresses = [Entry(**each) for each in content["addresses"]]
        await _there(namespace, lambda: asyncio.run(_add_addresses(addresses)))
        for name in content["up"]:
            await run(["nsenter", f"--net={namespace}", "ip", "link", "set", "dev", name, "up"])
        limits = [each for each in settings if each.name.endswith(RESET_WHEN_UP)]
        refused += await asyncio.to_thread(write, root_pid, limits)
        await _there(namespace, lambda: add_routes([base64.b64decode(each) for each in content["routes"]]))
        await _there(namespace, lambda: set_rules([base64.b64decode(each) for each in content["rules"]]))
        for name, rule_set in content["filters"].items():
            await run(["nsenter", f"--net={namespace}", *FILTERS[name][0]], stdin=rule_set)
    except (CommandError, NetlinkError, OSError, ValueError, KeyError, TypeError) as error:
        raise RestoreError(
            f"the workload's network namespace could not be made again: {_reason(error)}", detail=_detail(error)
        ) from error
    return refused


async def moving_addresses(namespace: Path) -> list[Entry]:
    """Give all addresses but those that the kernel puts on by itself: on the loopback device, and made of a MAC.

    That is the host's, and the next ipvlan there may be given the same (addrconf_ifid_eui48, include/net/addrconf.h).
    """

    async def ask() -> list[Entry]:
        async with AsyncIPRoute() as kernel:
            return await entries_of(kernel)

    found = await _there(namespace, lambda: asyncio.run(ask()))
    return [each for each in found if each.address != LOOPBACK and each.protocol != IFAPROT_KERNEL_LL]


async def _content(root_pid: int, change: Readdressing) -> dict[str, Any]:
    namespace = network_of(root_pid)
    enter = ["nsenter", f"--net={namespace}"]
    shown = json.loads((await run([*enter, "ip", "-json", "link", "show"])).stdout)
    names = ["nft", *await _there(namespace, _legacy_filters)]
    filters = {name: (await run([*enter, *FILTERS[name][1]])).stdout for name in names}
    return {
        "up": [each["ifname"] for each in shown if "UP" in each["flags"] and each["ifname"] not in OF_MODULES],
        "addresses": [dataclasses.asdict(readdressed(each, change)) for each in await moving_addresses(namespace)],
        "routes": [base64.b64encode(route_record(each, change)).decode() for each in await _there(namespace, routes)],
        "rules": [base64.b64encode(rule_record(each, change)).decode() for each in await _there(namespace, rules)],
        "filters": {name: rule_set for name, rule_set in filters.items() if rule_set},
        "configuration": await _there(namespace, read_configuration),
    }


def readdressed(entry: Entry, change: Readdressing) -> Entry:
    """Give an address as it shall be there; see `readdressing.address_record`."""
    new = change.of(entry.index, ip_address(entry.address))
    if new is None:
        return entry
    prefix = entry.prefix_length if entry.peer else new.network.prefixlen
    old_network = ip_interface(f"{entry.address}/{entry.prefix_length}").network
    broadcast = entry.broadcast
    if broadcast and broadcast == str(old_network.broadcast_address):
        broadcast = str(new.network.broadcast_address) if prefix < SMALLEST_SUBNET[new.version] else ""
    return dataclasses.replace(entry, address=str(new.ip), prefix_length=prefix, broadcast=broadcast)


async def _there(namespace: Path, act: Callable[[], T]) -> T:
    return await asyncio.to_thread(inside, namespace, act)


def read_configuration(below: Path = CONFIGURATION) -> list[tuple[str, str]]:
    """Read what can be set of devices: first what holds for all, as writing it changes that of each."""
    found: list[tuple[str, str]] = []
    for family in ("ipv4", "ipv6"):
        try:
            devices = {path.name: path for path in (below / family / "conf").iterdir()}
        except OSError:  # a kernel without IPv6
            continue
        first = [devices.pop(name) for name in ("all", "default") if name in devices]
        for path in (path for device in (*first, *devices.values()) for path in sorted(device.iterdir())):
            try:
                found.append((f"net/{path.relative_to(below)}", path.read_text().rstrip("\n")))
            except OSError:  # some are only there once they were set
                continue
    return found


def _legacy_filters() -> list[str]:
    """Name the filters that xtables has in this namespace; nft knows those that newer programs make."""
    return [name for name, tables in LEGACY_TABLES.items() if tables.exists() and tables.read_text().strip()]


async def _add_addresses(addresses: Sequence[Entry]) -> None:
    deadline = time.monotonic() + VANISH_SECONDS
    async with AsyncIPRoute() as kernel:
        left = list(addresses)
        while left:
            try:
                await add_entry(kernel, left[0])
                left.pop(0)
            except NetlinkError as error:
                if error.code != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(LOOK_SECONDS)


def _reason(error: Exception) -> str:
    if isinstance(error, CommandError):
        return error.message
    if isinstance(error, NetlinkError) and error.code == errno.EADDRINUSE:
        return "one of its addresses is that of another ipvlan on the same device"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _detail(error: Exception) -> str:
    return error.detail if isinstance(error, CommandError) else ""
