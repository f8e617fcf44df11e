"""The addresses of this host: list them, put some on, take some off.

Called by `network.identity`, in the network namespace that the agent lives in. Never waits for duplicate address
detection, never sends anything by itself, and never touches an address that it was not named.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path

import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from phaul.errors import SwitchoverError
from phaul.migration.facts import AddressFacts

log = structlog.get_logger(__name__)

SYSCTL = Path("/proc/sys/net/ipv4/conf")
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
FOREVER_SECONDS = 0xFFFFFFFF

# linux/if_addr.h
IFA_F_SECONDARY = 0x01
IFA_F_NODAD = 0x02
IFA_F_HOMEADDRESS = 0x10
IFA_F_MANAGETEMPADDR = 0x100
IFA_F_NOPREFIXROUTE = 0x200
IFA_F_MCAUTOJOIN = 0x400
# What a person chose; the rest of the flags says what the kernel made of it.
CHOSEN_FLAGS = IFA_F_HOMEADDRESS | IFA_F_MANAGETEMPADDR | IFA_F_NOPREFIXROUTE | IFA_F_MCAUTOJOIN


@dataclass(frozen=True, slots=True)
class Entry:
    """An address as the kernel lists it, with all that is needed to put it back as it was."""

    address: str
    prefix_length: int
    index: int
    scope: int
    flags: int
    label: str = ""
    broadcast: str = ""
    peer: str = ""  # the other end of a point-to-point device
    metric: int = 0
    preferred_seconds: int = FOREVER_SECONDS
    valid_seconds: int = FOREVER_SECONDS
    protocol: int = 0  # who has put it on, as far as the kernel was told

    @property
    def is_ipv6(self) -> bool:
        """Whether this is an IPv6 address."""
        return ":" in self.address

    def hangs_on(self, other: Entry) -> bool:
        """Whether the kernel may drop this one together with `other`: a secondary address of the same subnet."""
        return (
            not self.is_ipv6
            and not other.is_ipv6
            and self.index == other.index
            and bool(self.flags & IFA_F_SECONDARY)
            and not other.flags & IFA_F_SECONDARY
            and self.prefix_length == other.prefix_length
            and ip_interface(f"{self.address}/{self.prefix_length}").network
            == ip_interface(f"{other.address}/{other.prefix_length}").network
        )


class HostAddresses:
    """The addresses of this host.

    Owns no descriptor. Remembers what it took off, so that a rollback puts an address back with the label, flags,
    metric and lifetimes that it had; after a restart of the agent it comes back plain.
    """

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str], Entry] = {}

    @property
    def taken(self) -> frozenset[str]:
        """The addresses that were taken off and not put back since."""
        return frozenset(address for address, _ in self._taken)

    async def listed(self) -> tuple[AddressFacts, ...]:
        """Every global-scope address with its device."""
        async with AsyncIPRoute() as kernel:
            entries = await entries_of(kernel)
        names = dict(socket.if_nameindex())
        return tuple(
            AddressFacts(entry.address, entry.prefix_length, names[entry.index])
            for entry in entries
            if entry.scope == RT_SCOPE_UNIVERSE and entry.index in names
        )

    async def local(self) -> tuple[str, ...]:
        """Every address of every scope, loopback included."""
        async with AsyncIPRoute() as kernel:
            return tuple(dict.fromkeys(entry.address for entry in await entries_of(kernel)))

    async def add(self, addresses: Sequence[AddressFacts]) -> None:
        """Put addresses on their devices, usable at once. One that is there already is no error.

        Raises `SwitchoverError` with none of those added that were not there before.
        """
        added: list[Entry] = []
        async with AsyncIPRoute() as kernel:
            try:
                for address in addresses:
                    entry = self._entry(address)
                    if await add_entry(kernel, entry):
                        added.append(entry)
            except (NetlinkError, OSError) as error:
                failure = SwitchoverError(
                    f"{address} could not be put on: {_reason(error)}", hint=_hint(address, error)
                )
                for entry in reversed(added):
                    try:
                        await _delete(kernel, entry)
                    except NetlinkError as second:
                        failure.add_note(f"{entry.address} could not be taken off again: {_reason(second)}")
                raise failure from error
        for address in addresses:
            self._taken.pop((address.address, address.device), None)
        log.debug("addresses.added", addresses=[str(each) for each in addresses])

    async def remove(self, addresses: Sequence[AddressFacts]) -> None:
        """Take addresses off their devices, whatever prefix length they have there. One that is gone is no error.

        Where the kernel drops secondary addresses together with the primary one of their subnet, they are kept or put
        back. Raises `SwitchoverError`, with some of them possibly taken off.
        """
        names = dict(socket.if_nameindex())
        wanted = {(each.address, each.device) for each in addresses}
        async with AsyncIPRoute() as kernel:
            before = await entries_of(kernel)
            leaving = [entry for entry in before if (entry.address, names.get(entry.index, "")) in wanted]
            staying = [entry for entry in before if entry not in leaving]
            # Secondary ones first: were their primary one taken first, they would be promoted for nothing.
            leaving.sort(key=lambda entry: not entry.flags & IFA_F_SECONDARY)
            try:
                for entry in leaving:
                    device = names[entry.index]
                    self._taken[entry.address, device] = entry
                    keeps = any(other.hangs_on(entry) for other in staying)
                    with _Promotion(device) if keeps else nullcontext():
                        await _delete(kernel, entry)
                await _put_back(kernel, staying)
            except (NetlinkError, OSError) as error:
                raise SwitchoverError(f"{entry.address} could not be taken off {device}: {_reason(error)}") from error
        log.debug("addresses.removed", addresses=[str(each) for each in addresses])

    def _entry(self, address: AddressFacts) -> Entry:
        """Say how an address is to be put on: as it was when it was taken off here, else plain."""
        remembered = self._taken.get((address.address, address.device))
        if remembered is not None:
            return remembered
        index = socket.if_nametoindex(address.device)
        return Entry(address.address, address.prefix_length, index, RT_SCOPE_UNIVERSE, 0)


class _Promotion:
    """Have the kernel keep the secondary addresses of a device while a primary one goes (promote_secondaries).

    Without it they all go, and for a moment the device may be without any address, which costs it its routes too
    (net/ipv4/fib_frontend.c, fib_inetaddr_event, 6.12). Where the setting may not be written, what was dropped is put
    back afterwards, without the routes.
    """

    def __init__(self, device: str) -> None:
        self._path = SYSCTL / device / "promote_secondaries"
        self._before = ""

    def __enter__(self) -> None:
        try:
            before = self._path.read_text().strip()
            if before == "0":
                self._path.write_text("1")
                self._before = before
        except OSError as error:
            log.warning("addresses.promotion_refused", path=str(self._path), reason=error.strerror)

    def __exit__(self, *_: object) -> None:
        if self._before:
            self._path.write_text(self._before)


async def entries_of(kernel: AsyncIPRoute) -> list[Entry]:
    """Give the addresses of all devices, in the kernel's order."""
    entries: list[Entry] = []
    async for message in await kernel.addr("dump"):
        # Of a point-to-point device IFA_ADDRESS is the other end (linux/if_addr.h).
        remote = message.get_attr("IFA_ADDRESS")
        address = message.get_attr("IFA_LOCAL") or remote
        lifetimes = message.get_attr("IFA_CACHEINFO") or {}
        entries.append(
            Entry(
                address=address,
                prefix_length=message["prefixlen"],
                index=message["index"],
                scope=message["scope"],
                flags=message.get_attr("IFA_FLAGS") or message["flags"],
                label=message.get_attr("IFA_LABEL") or "",
                broadcast=message.get_attr("IFA_BROADCAST") or "",
                peer=remote if remote != address else "",
                metric=message.get_attr("IFA_RT_PRIORITY") or 0,
                preferred_seconds=lifetimes.get("ifa_preferred", FOREVER_SECONDS),
                valid_seconds=lifetimes.get("ifa_valid", FOREVER_SECONDS),
                protocol=message.get_attr("IFA_PROTO") or 0,
            )
        )
    return entries


async def add_entry(kernel: AsyncIPRoute, entry: Entry) -> bool:
    """Put an address on; False where it was there already."""
    request: dict[str, object] = {
        "index": entry.index,
        "family": socket.AF_INET6 if entry.is_ipv6 else socket.AF_INET,
        "prefixlen": entry.prefix_length,
        "scope": entry.scope,
        "local": entry.address,
        "address": entry.peer or entry.address,
        "flags": entry.flags & CHOSEN_FLAGS | (IFA_F_NODAD if entry.is_ipv6 else 0),
    }
    if entry.label:
        request["label"] = entry.label
    if entry.broadcast:
        request["broadcast"] = entry.broadcast
    if entry.metric:
        request["priority"] = entry.metric
    if entry.protocol:
        request["proto"] = entry.protocol
    if entry.valid_seconds != FOREVER_SECONDS:
        request["preferred"] = entry.preferred_seconds
        request["valid"] = entry.valid_seconds
    try:
        await kernel.addr("add", **request)
    except NetlinkError as error:
        if error.code == errno.EEXIST:
            return False
        raise
    return True


async def _delete(kernel: AsyncIPRoute, entry: Entry) -> None:
    try:
        await kernel.addr(
            "del",
            index=entry.index,
            family=socket.AF_INET6 if entry.is_ipv6 else socket.AF_INET,
            prefixlen=entry.prefix_length,
            local=entry.address,
            address=entry.peer or entry.address,
        )
    except NetlinkError as error:
        # Gone in the meantime, or its device is.
        if error.code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
            raise


async def _put_back(kernel: AsyncIPRoute, staying: Sequence[Entry]) -> None:
    """Put on again what should have stayed and is gone."""
    there = {(entry.address, entry.prefix_length, entry.index) for entry in await entries_of(kernel)}
    for entry in staying:
        if (entry.address, entry.prefix_length, entry.index) not in there:
            log.warning("addresses.put_back", address=entry.address, index=entry.index)
            await add_entry(kernel, entry)


def _reason(error: NetlinkError | OSError) -> str:
    if isinstance(error, NetlinkError):
        return str(error.args[1]) if len(error.args) > 1 else str(error)
    return error.strerror or str(error)


def _hint(address: AddressFacts, error: NetlinkError | OSError) -> str:
    if isinstance(error, OSError) and not isinstance(error, NetlinkError):
        return f"Name a device that exists there: --address {address.address}/{address.prefix_length}@DEVICE."
    return "phaul needs the right to change addresses (CAP_NET_ADMIN), and the device has to be up for its routes."
