"""`migration.own_network.OwnNetworks` on this host's kernel: what connects workloads that have a network of their own.

Made by `agent.wiring`. Decides nothing: `migration.wire` says what happens when. What it must find again after a crash
stands in the kernel: fences by their migration, links by their name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from phaul.errors import DumpError, PhaulError, SwitchoverError
from phaul.migration.facts import AddressFacts, LinkFacts, NetworkFacts, SettingFacts
from phaul.migration.readdressing import Readdressing
from phaul.network import ipvlan, link_fence, neighbours, own_content, waking
from phaul.network.own_network import host_links, look
from phaul.system.namespaces import NAMED, inside, is_elsewhere, network_names, network_of, path_of
from phaul.system.process import CommandError, run
from phaul.system.sockets import tcp_sockets

log = structlog.get_logger(__name__)

VANISH_SECONDS = 5.0  # for the kernel to take down a namespace that nobody is in any more
LOOK_SECONDS = 0.02
DRAIN_SECONDS = 2.0  # for the end of connections to be acknowledged, also where it has to be said again
# What a socket is in whose end its peer has not heard of, or not yet acknowledged; the first as long as a process dies.
UNHEARD_STATES = ("established", "close_wait", "fin_wait1", "closing", "last_ack")
IFF_UP = 1

_CRIU_TABLE = re.compile(r"table inet (CRIU-[0-9A-Za-z-]+)")


class HostOwnNetworks:
    """`OwnNetworks` of this host. Owns a descriptor for each namespace that is on its way, by its migration."""

    def __init__(self) -> None:
        self._leaving: dict[str, int] = {}

    async def look(self, root_pid: int) -> NetworkFacts:
        """Say how the namespace of a process is connected."""
        return await look(root_pid)

    async def fence(self, migration_id: str, links: Sequence[LinkFacts], leaving: Sequence[str] = ()) -> None:
        """Drop every frame from and to them but those of addresses that leave the network, in 5 to 20 ms."""
        if links:
            await link_fence.engage(migration_id, links, leaving)

    async def unfence(self, migration_id: str) -> None:
        """Lift the fence in about a millisecond."""
        await link_fence.release(migration_id)
        self._let_go(migration_id)

    async def require(self, links: Sequence[LinkFacts]) -> None:
        """Try those that phaul makes itself."""
        await ipvlan.require([link for link in links if link.kind == ipvlan.KIND])

    async def save(self, root_pid: int, images: Path, change: Readdressing) -> None:
        """Write it down, in a few hundredths of a second."""
        await own_content.save(root_pid, images, change)

    async def keep(self, migration_id: str, root_pid: int) -> None:
        """Keep a descriptor of it."""
        self._let_go(migration_id)
        try:
            self._leaving[migration_id] = os.open(network_of(root_pid), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DumpError(f"the workload's network namespace could not be entered: {error.strerror}") from error

    async def drain(self, migration_id: str, network: NetworkFacts, addresses: Sequence[str]) -> None:
        """Look until no connection from them waits for its peer to acknowledge its end: for 2 s at most, on its way."""
        if way := self._way(migration_id, network):
            await asyncio.to_thread(_wait_heard, way, frozenset(addresses))

    async def make(self, root_pid: int, network: NetworkFacts, images: Path) -> tuple[str, ...]:
        """Make what was written down."""
        refused = await own_content.make(root_pid, network, images, _write_settings)
        if refused:
            log.warning("own_network.settings_refused", root_pid=root_pid, settings=refused)
        return refused

    async def fill(self, root_pid: int, settings: Sequence[SettingFacts]) -> tuple[str, ...]:
        """Write what is not as it should be."""
        refused = await asyncio.to_thread(_write_settings, root_pid, tuple(settings))
        if refused:
            log.warning("own_network.settings_refused", root_pid=root_pid, settings=refused)
        return refused

    async def connect(self, root_pid: int, links: Sequence[LinkFacts]) -> None:
        """Put the outer ends on their bridges, and up. One that is there stays so."""
        async with AsyncIPRoute() as kernel:
            for link in links:
                if link.kind == "veth":
                    await _connect(kernel, link)
        indexes = {link.index for link in links}
        try:
            await asyncio.to_thread(inside, network_of(root_pid), lambda: waking.wake(indexes))
        except OSError as error:
            log.warning("own_network.not_woken", root_pid=root_pid, reason=error.strerror)

    async def name(self, root_pid: int, names: Sequence[str]) -> None:
        """Give the namespace its names, as ``ip netns attach`` does."""
        if not names:
            return
        inode = network_of(root_pid).stat().st_ino
        known = network_names()
        for name in names:
            if known.get(name) != inode:
                await run(["ip", "netns", "attach", name, str(root_pid)])

    async def cut(self, root_pid: int, network: NetworkFacts) -> None:
        """Remove what ends inside, while somebody is there to lead inside, and the outer ends that nobody uses."""
        await _remove_inner_ends(network_of(root_pid), network.links)
        names = {link.outer for link in network.links if link.kind == "veth"}
        deadline = time.monotonic() + VANISH_SECONDS
        async with AsyncIPRoute() as kernel:
            while names:
                there = [each async for each in await kernel.link("dump") if each.get_attr("IFLA_IFNAME") in names]
                for each in there:
                    # As the engine makes them. One that was connected goes when its namespace does.
                    information = each.get_attr("IFLA_LINKINFO")
                    is_veth = bool(information) and information.get_attr("IFLA_INFO_KIND") == "veth"
                    if is_veth and not each["flags"] & IFF_UP and not each.get_attr("IFLA_MASTER"):
                        await _delete(kernel, each["index"])
                names = {each.get_attr("IFLA_IFNAME") for each in there}
                if names and time.monotonic() > deadline:
                    raise SwitchoverError(f"{', '.join(sorted(names))} is still there, and in use")
                await asyncio.sleep(LOOK_SECONDS if names else 0)

    async def forget(self, migration_id: str, network: NetworkFacts, *, fenced: bool = True) -> None:
        """Remove what stands behind the fence of a migration whose tree is dead, and the names of its namespace."""
        if fenced and network.links and not await link_fence.stands(migration_id):
            return
        # Also one without a name: the kernel takes its time to take it down, and until then it would answer.
        if way := self._way(migration_id, network):
            await _remove_inner_ends(way, network.links)
        self._let_go(migration_id)
        indexes = {(link.outer, link.outer_index) for link in network.links if link.kind == "veth"}
        async with AsyncIPRoute() as kernel:
            for each in await host_links():
                if (each.name, each.index) in indexes:
                    await _delete(kernel, each.index)
        for name in _names_of(network):
            await run(["ip", "netns", "delete", name])

    async def announce(self, root_pid: int, links: Sequence[LinkFacts]) -> None:
        """Tell the neighbours, once each, from inside. What could not be told is logged.

        An ipvlan of a mode that has no neighbours inside speaks through the device that it stands on: who has the
        address as a neighbour all the same learns of it.
        """
        routed = [link for link in links if link.kind == ipvlan.KIND and not link.mode.startswith("l2 ")]
        failures = neighbours.announce([each for link in routed for each in _announced(link, link.outer)])
        if addresses := [each for link in links if link not in routed for each in _announced(link, link.name)]:
            try:
                failures += await asyncio.to_thread(
                    inside, network_of(root_pid), lambda: neighbours.announce(addresses, at_once=True)
                )
            except OSError as error:
                failures += (f"the workload's network namespace could not be entered: {error.strerror or error}",)
        for failure in failures:
            log.warning("announce.failed", reason=failure)

    async def remove_engine_locks(self, root_pid: int) -> None:
        """Remove CRIU's tables from the namespace of a process, if it still has one."""
        if not network_of(root_pid).exists():
            return
        enter = ["nsenter", f"--net={network_of(root_pid)}", "nft"]
        try:
            listing = await run([*enter, "list", "tables"])
        except CommandError:
            return  # it ended meanwhile
        for line in listing.stdout.splitlines():
            if match := _CRIU_TABLE.fullmatch(line.strip()):
                await run([*enter, "delete", "table", "inet", match[1]], check=False)

    def _way(self, migration_id: str, network: NetworkFacts) -> Path | None:
        """Give a path into a namespace that nobody may be in any more; None where it has gone with the last."""
        if migration_id in self._leaving:
            return Path(path_of(self._leaving[migration_id]))
        return next((NAMED / name for name in _names_of(network)), None)

    def _let_go(self, migration_id: str) -> None:
        if (descriptor := self._leaving.pop(migration_id, None)) is not None:
            os.close(descriptor)


def _names_of(network: NetworkFacts) -> list[str]:
    return [name for name, inode in network_names().items() if name in network.names and inode == network.inode]


def _wait_heard(namespace: Path, addresses: frozenset[str]) -> None:
    def wait() -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            found = tcp_sockets(Path("/proc/thread-self/net"))
            if not any(each.state in UNHEARD_STATES and each.local_address in addresses for each in found):
                return
            time.sleep(LOOK_SECONDS)

    with contextlib.suppress(OSError):  # it has gone with the last connection
        inside(namespace, wait)


def _announced(link: LinkFacts, device: str) -> list[AddressFacts]:
    # The MAC of an ipvlan is that of where it stands: then the address that was made of it has moved on as well.
    addresses = (*link.addresses, *link.link_local)
    return [
        AddressFacts(address, int(prefix), device) for address, _, prefix in (each.partition("/") for each in addresses)
    ]


def _write_settings(root_pid: int, settings: Sequence[SettingFacts]) -> tuple[str, ...]:
    def write() -> tuple[str, ...]:
        refused: list[str] = []
        for setting in settings:
            path = Path("/proc/sys") / setting.name
            try:
                if path.read_text().rstrip("\n") != setting.value:
                    path.write_text(setting.value)
            except OSError as error:
                if error.errno != errno.ENOENT:  # of a device that is not there yet, or of a module that is not loaded
                    refused.append(f"{setting.name}: {error.strerror}")
        return tuple(refused)

    try:
        return inside(network_of(root_pid), write)
    except OSError as error:
        return (f"{error.filename}: {error.strerror}",)


async def _connect(kernel: AsyncIPRoute, link: LinkFacts) -> None:
    try:
        (outer,) = await kernel.link_lookup(ifname=link.outer)
        (bridge,) = await kernel.link_lookup(ifname=link.bridge)
        # A port first and up then: in between, what comes out of it reaches nobody.
        await kernel.link("set", index=outer, mtu=link.mtu, master=bridge)
        await kernel.link("set", index=outer, state="up")
    except (NetlinkError, OSError, ValueError) as error:
        raise SwitchoverError(
            f"{link.outer} could not be put on the bridge {link.bridge}: {error}",
            hint=f"`ip link set {link.outer} master {link.bridge} up` connects it.",
        ) from error


async def _delete(kernel: AsyncIPRoute, index: int) -> None:
    try:
        await kernel.link("del", index=index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise PhaulError(f"a network device could not be removed: {error}") from error


async def _remove_inner_ends(namespace: Path, links: Sequence[LinkFacts]) -> None:
    if not is_elsewhere(namespace):
        return  # the PID is somebody else's by now, and a device of that name the host's
    for link in links:
        if link.kind != "veth":
            # Without a check: nobody is there any more, or it is gone.
            await run(["nsenter", f"--net={namespace}", "ip", "link", "delete", "dev", link.name], check=False)
