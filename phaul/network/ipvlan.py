"""Devices of the kind ipvlan: made in a workload's namespace, on a device of this host.

Called by `network.own_links` and `own_content`. All ipvlans on one device have one mode and one flag, and the newest
sets them for all (drivers/net/ipvlan/ipvlan_main.c, ipvlan_link_new, 6.12): another one is never made.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from phaul.errors import SwitchoverError
from phaul.migration.facts import LinkFacts
from phaul.system.namespaces import all_networks, inside, new_network, path_of
from phaul.system.process import CommandError, run

KIND = "ipvlan"
FLAGS = ("bridge", "private", "vepa")
PASSING_NAME = "phaul-ipvlan"  # of a device that is on its way
MODULE = "/sys/module/ipvlan"


class IpvlanModule:
    """Whether this kernel has the kind, or will once it is asked for one. Looks for the module's file but once."""

    def __init__(self) -> None:
        self._can_be_loaded: bool | None = None

    async def is_known(self) -> bool:
        """Say so."""
        if os.access(MODULE, os.F_OK):
            return True
        if self._can_be_loaded is None:
            try:
                found = await run(["modprobe", "--dry-run", "--quiet", KIND], check=False)
                self._can_be_loaded = found.exit_status == 0
            except CommandError:
                self._can_be_loaded = False
        return self._can_be_loaded


def mode_of(device: dict[str, Any]) -> str:
    """Give mode and flag of one, as ``ip link add`` takes them, from what ``ip -json -details`` says."""
    data = device.get("linkinfo", {}).get("info_data", {})
    return f"{data.get('mode', '')} {next((flag for flag in FLAGS if data.get(flag)), FLAGS[0])}"


async def number_of_host(namespace: Path) -> int:
    """Give the number by which devices of a namespace say that what they stand on is on this host; -1 for none."""

    async def ask() -> int:
        async with AsyncIPRoute() as kernel:
            return int((await kernel.get_netnsid(pid=os.getpid()))["nsid"])

    return await asyncio.to_thread(inside, namespace, lambda: asyncio.run(ask()))


async def require(links: Sequence[LinkFacts]) -> None:
    """See that they can be made here, by making each in a namespace that goes at once.

    Raises `SwitchoverError`. Nothing is left, but for the kernel's module.
    """
    for link in links:
        if other := await _other_mode(link):
            raise SwitchoverError(
                f"an ipvlan of the mode {other} stands on {link.outer} already, and one of the mode {link.mode} would "
                "change it",
                hint="All ipvlans on one device have one mode: make the workload's of that one, on both hosts.",
            )
        descriptor = await asyncio.to_thread(new_network)
        try:
            await _add(link, descriptor)
        except CommandError as error:
            raise SwitchoverError(
                f"no ipvlan of the mode {link.mode} can be made on {link.outer}: {error.message}",
                hint="It needs a device that is no port of a bridge or bond, and that no macvlan stands on.",
                detail=error.detail,
            ) from error
        finally:
            os.close(descriptor)


async def make(link: LinkFacts, namespace: Path) -> None:
    """Make one in a namespace under its name and number, down. Raises `CommandError` or `OSError`.

    By way of a namespace that goes at once: the kernel takes name and number for those of a device of the namespace
    that is asked (net/core/rtnetlink.c, rtnl_newlink, 6.12), but for one that is moved only the new place counts.
    """
    descriptor = await asyncio.to_thread(new_network)
    try:
        await _add(link, descriptor)
        move = ["ip", "link", "set", "dev", PASSING_NAME, "netns", str(namespace), "name", link.name]
        await run(["nsenter", f"--net={path_of(descriptor)}", *move, "index", str(link.index)])
        await run(["nsenter", f"--net={namespace}", "ip", "link", "set", "dev", link.name, "mtu", str(link.mtu)])
    finally:
        os.close(descriptor)


async def _add(link: LinkFacts, descriptor: int) -> None:
    new = ["ip", "link", "add", "link", link.outer, "name", PASSING_NAME, "netns", path_of(descriptor)]
    await run([*new, "type", KIND, "mode", *link.mode.split()])


async def _other_mode(link: LinkFacts) -> str:
    """Give the mode of the ipvlans on a device, wherever they are, if it is another one."""
    if not os.access(MODULE, os.F_OK):
        return ""  # nobody has made one yet
    below = socket.if_nametoindex(link.outer)
    for namespace in await asyncio.to_thread(all_networks):
        shown = ["nsenter", f"--net={namespace}", "ip", "-json", "-details", "link", "show", "type", KIND]
        listing = (await run(shown, check=False)).stdout
        try:
            number = await number_of_host(namespace)
        except (NetlinkError, OSError):
            continue  # it has ended meanwhile
        for device in json.loads(listing or "[]"):
            on_it = device.get("link_index") == below and device.get("link_netnsid") == number
            if on_it and mode_of(device) != link.mode:
                return mode_of(device)
    return ""
