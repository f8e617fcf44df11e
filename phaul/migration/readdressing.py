"""Other addresses for a network namespace, in what the kernel says of its addresses, routes and rules. Pure.

`new_own_addresses` makes a `Readdressing` of what was asked for; `criu.address_images` and `network.own_content` have
it applied to what they have saved of the namespace, on the source, so that every restore finds it.

A record is what follows the header of an RTM_NEWADDR, RTM_NEWROUTE or RTM_NEWRULE message: a header of its kind and
attributes (linux/if_addr.h, linux/rtnetlink.h, linux/fib_rules.h). All functions raise `ValueError` on one that is not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Attributes = list[tuple[int, bytes]]

ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index of the device
ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths, TOS, table, protocol, scope, type, flags; a rule's alike
HOP = struct.Struct("=HBBi")  # rtnexthop: length with its attributes, flags, weight, index of the device
ATTRIBUTE = struct.Struct("=HH")  # length with this, kind
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_MULTIPATH, RTA_VIA = 1, 2, 4, 5, 7, 9, 18
FRA_DST, FRA_SRC = 1, 2
RTPROT_KERNEL = 2
RTN_UNICAST = 1
RTNH_F_ONLINK = 0x4
FAMILY_BYTES = 2  # of an rtvia, before its address
AF_INET, AF_INET6 = 2, 10  # linux/socket.h
FAMILIES = {AF_INET: 4, AF_INET6: 16}  # the bytes of an address
SMALLEST_SUBNET = {4: 31, 6: 128}  # from this prefix length on, no address of it is that of all (RFC 3021)


@dataclass(frozen=True, slots=True)
class NewPlace:
    """Another address for a device. Both are IP/PREFIX."""

    index: int  # the kernel's number of the device, in the namespace
    old: str
    new: str
    alone: bool = True  # no address that stays on the device is in the old one's network

    @property
    def address(self) -> Address:
        """The one that goes."""
        return ip_interface(self.old).ip

    @property
    def network(self) -> Network:
        """The network that it was in."""
        return ip_interface(self.old).network


@dataclass(frozen=True, slots=True)
class Readdressing:
    """What becomes of a namespace. False where all stays as it is."""

    places: tuple[NewPlace, ...] = ()
    gateways: tuple[tuple[str, str], ...] = ()  # (old, new)

    def __bool__(self) -> bool:
        return bool(self.places or self.gateways)

    @property
    def leaving(self) -> tuple[str, ...]:
        """The addresses that the namespace has no more."""
        arriving = {ip_interface(each.new).ip for each in self.places}
        return tuple(str(each.address) for each in self.places if each.address not in arriving)

    def of(self, index: int, address: Address) -> IPv4Interface | IPv6Interface | None:
        """What comes in place of an address of a device; None for one that stays."""
        found = (each.new for each in self.places if each.index == index and each.address == address)
        return next(map(ip_interface, found), None)


STAYING = Readdressing()


def readdressing_from(data: Mapping[str, Any] | None) -> Readdressing:
    """Read back what `dataclasses.asdict` made of one."""
    if not data:
        return STAYING
    return Readdressing(
        tuple(NewPlace(**each) for each in data["places"]), tuple((str(old), str(new)) for old, new in data["gateways"])
    )


def address_record(record: bytes, change: Readdressing) -> bytes:
    """Give an address as the copy has it: with the broadcast address of its network where it had that."""
    family, prefix, flags, scope, index = _head(ADDRESS, record)
    if family not in FAMILIES:
        return record
    attributes = _attributes(record[ADDRESS.size :])
    values = dict(attributes)
    local = values.get(IFA_LOCAL, values.get(IFA_ADDRESS, b""))
    has = _address(local)
    new = change.of(index, has) if has else None
    if has is None or new is None:
        return record
    of_all = ip_interface((has, prefix)).network.broadcast_address.packed
    if has_peer := values.get(IFA_ADDRESS, local) != local:  # whose prefix it is then
        new = ip_interface((new.ip, prefix))
    changed: Attributes = []
    for kind, value in attributes:
        if kind == IFA_LOCAL or (kind == IFA_ADDRESS and not has_peer):
            changed.append((kind, new.ip.packed))
        elif kind != IFA_BROADCAST or value != of_all:
            changed.append((kind, value))
        elif new.network.prefixlen < SMALLEST_SUBNET[new.version]:
            changed.append((kind, new.network.broadcast_address.packed))
    return ADDRESS.pack(family, new.network.prefixlen, flags, scope, index) + _packed(changed)


def route_record(record: bytes, change: Readdressing) -> bytes:
    """Give a route as the copy has it; nothing for one that the kernel makes itself, of the address or the new one.

    One by which the network of an address is reached leads to that of the new address; what goes on from another
    address than the old one, or by another gateway than one that is replaced, stays.
    """
    family, length, source_length, *rest = _head(ROUTE, record)
    if family not in FAMILIES:
        return record
    attributes = _attributes(record[ROUTE.size :])
    values = dict(attributes)
    protocol = rest[2]
    to, preferred = _network(values.get(RTA_DST), length), _address(values.get(RTA_PREFSRC, b""))
    addresses = {each.address: ip_interface(each.new).ip for each in change.places}
    if protocol == RTPROT_KERNEL and (preferred in addresses or any(to in _of_kernel(each) for each in change.places)):
        return b""
    if to is not None and not {RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA} & values.keys():
        (index,) = struct.unpack("=I", values.get(RTA_OIF, bytes(4)))
        followed = (each.new for each in change.places if each.alone and each.index == index and each.network == to)
        if new := next(followed, ""):
            to = ip_interface(new).network
            attributes = [(kind, to.network_address.packed if kind == RTA_DST else old) for kind, old in attributes]
            length = to.prefixlen
    whole = FAMILIES[family] * 8
    own = {RTA_PREFSRC, *([RTA_DST] if length == whole else []), *([RTA_SRC] if source_length == whole else [])}
    changed = [
        (kind, _changed(value, addresses) if kind in own else _by_gateway(kind, value, change))
        for kind, value in attributes
    ]
    return ROUTE.pack(family, length, source_length, *rest) + _packed(changed)


def rule_record(record: bytes, change: Readdressing) -> bytes:
    """Give a rule as the copy has it: one for an address alone is for the new one."""
    family, length, source_length, *rest = _head(ROUTE, record)
    if family not in FAMILIES:
        return record
    whole = FAMILIES[family] * 8
    own = {*([FRA_DST] if length == whole else []), *([FRA_SRC] if source_length == whole else [])}
    addresses = {each.address: ip_interface(each.new).ip for each in change.places}
    changed = [
        (kind, _changed(value, addresses) if kind in own else value)
        for kind, value in _attributes(record[ROUTE.size :])
    ]
    return ROUTE.pack(family, length, source_length, *rest) + _packed(changed)


def gateways_of(record: bytes) -> Iterator[tuple[int, str]]:
    """Give (number of the device, gateway) for each that a route goes by, and that another route has to lead to."""
    family, *_, kind, flags = _head(ROUTE, record)
    attributes = _attributes(record[ROUTE.size :])
    values = dict(attributes)
    if family not in FAMILIES or kind != RTN_UNICAST:
        return
    (index,) = struct.unpack("=I", values.get(RTA_OIF, bytes(4)))
    if not flags & RTNH_F_ONLINK:
        yield from ((index, str(each)) for each in _gateways(attributes))
    for hop_flags, _, hop_index, inner in _hops(values.get(RTA_MULTIPATH, b"")):
        if not hop_flags & RTNH_F_ONLINK:
            yield from ((hop_index, str(each)) for each in _gateways(inner))


def on_link_of(record: bytes) -> tuple[int, str] | None:
    """Give (number of the device, network) for a route that leads there without a gateway."""
    family, length, *_, kind, _flags = _head(ROUTE, record)
    values = dict(_attributes(record[ROUTE.size :]))
    if family not in FAMILIES or kind != RTN_UNICAST or {RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA} & values.keys():
        return None
    if RTA_OIF not in values:
        return None
    (index,) = struct.unpack("=I", values[RTA_OIF])
    return index, str(_network(values.get(RTA_DST, bytes(FAMILIES[family])), length))


def _head(layout: struct.Struct, record: bytes) -> tuple[int, ...]:
    if len(record) < layout.size:
        raise ValueError(f"{len(record)} bytes are too few for a record of netlink")
    return layout.unpack_from(record)


def _attributes(data: bytes) -> Attributes:
    found: Attributes = []
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if not ATTRIBUTE.size <= length <= len(data) - at:
            raise ValueError(f"an attribute of netlink has {length} bytes")
        found.append((kind, data[at + ATTRIBUTE.size : at + length]))
        at += length + 3 & ~3
    return found


def _packed(attributes: Iterable[tuple[int, bytes]]) -> bytes:
    parts = (
        ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4) for kind, value in attributes
    )
    return b"".join(parts)


def _hops(data: bytes) -> Iterator[tuple[int, int, int, Attributes]]:
    """Give (flags, weight, number of the device, attributes) for each next hop of several."""
    at = 0
    while at + HOP.size <= len(data):
        length, flags, weight, index = HOP.unpack_from(data, at)
        if not HOP.size <= length <= len(data) - at:
            raise ValueError(f"a next hop of netlink has {length} bytes")
        yield flags, weight, index, _attributes(data[at + HOP.size : at + length])
        at += length + 3 & ~3


def _gateways(attributes: Attributes) -> Iterator[Address]:
    for kind, value in attributes:
        packed = value if kind == RTA_GATEWAY else value[FAMILY_BYTES:] if kind == RTA_VIA else b""
        if (found := _address(packed)) is not None:
            yield found


def _by_gateway(kind: int, value: bytes, change: Readdressing) -> bytes:
    new = {ip_address(old): ip_address(replacing) for old, replacing in change.gateways}
    if kind == RTA_GATEWAY:
        return _changed(value, new)
    if kind == RTA_VIA:
        return value[:FAMILY_BYTES] + _changed(value[FAMILY_BYTES:], new)
    if kind != RTA_MULTIPATH:
        return value
    hops: list[bytes] = []
    for flags, weight, index, inner in _hops(value):
        packed = _packed((each, _by_gateway(each, old, change)) for each, old in inner)
        hops.append(HOP.pack(HOP.size + len(packed), flags, weight, index) + packed)
    return b"".join(hops)


def _changed(value: bytes, new: Mapping[Address, Address]) -> bytes:
    found = _address(value)
    return new[found].packed if found is not None and found in new else value


def _of_kernel(place: NewPlace) -> set[Network]:
    """What the kernel makes routes to by itself for an address."""
    network = place.network
    return {network, ip_network(place.address), ip_network(network.broadcast_address)}


def _network(packed: bytes | None, length: int) -> Network | None:
    found = _address(packed or b"")
    return ip_network((found, length), strict=False) if found is not None else None


def _address(packed: bytes) -> Address | None:
    match len(packed):
        case 4:
            return IPv4Address(packed)
        case 16:
            return IPv6Address(packed)
        case _:
            return None
