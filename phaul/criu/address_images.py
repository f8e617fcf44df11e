"""The images that hold addresses, routes and rules of a network namespace (criu/net.c, 4.2.1).

They are what ``ip address save``, ``ip route save`` and ``ip rule save`` wrote. Called by `criu.engine`: after a dump,
for other addresses than it had; and before a restore. Duplicate address detection would take a second in which an IPv6
address of the copy answers nobody (RFC 4862, section 5.4), and finds nothing: the address is that of the same workload.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from phaul.criu.images import ImageError
from phaul.errors import RestoreError
from phaul.migration.readdressing import Readdressing, address_record, route_record, rule_record

MAGIC = 0x47361222  # of `ip address save` (iproute2, ip/ipaddress.c)
ROUTE_MAGIC = 0x45311224  # of `ip route save` (ip/iproute.c)
RULE_MAGIC = 0x71706986  # of `ip rule save` (ip/iprule.c)
RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWRULE = 20, 24, 32  # linux/rtnetlink.h
IFA_FLAGS = 8  # linux/if_addr.h; the byte in the header has no room for all of them, but for this one
IFA_F_NODAD = 0x02
HEADER = struct.Struct("=IHHII")  # nlmsghdr
ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg


def set_addresses(images: Path, change: Readdressing) -> None:
    """Give the copy's network namespace other addresses, and the routes and rules that go with them.

    Raises `ImageError` where one that goes is not there, or where an image is not what CRIU writes.
    """
    if not change:
        return
    for pattern, magic, kind, rewrite in (
        ("ifaddr-*.img", MAGIC, RTM_NEWADDR, address_record),
        ("route-*.img", ROUTE_MAGIC, RTM_NEWROUTE, route_record),
        ("route6-*.img", ROUTE_MAGIC, RTM_NEWROUTE, route_record),
        ("rule-*.img", RULE_MAGIC, RTM_NEWRULE, rule_record),
    ):
        changed = 0
        for path in images.glob(pattern):
            before = path.read_bytes()
            try:
                after = b"".join(_rewritten(before, magic, kind, change, rewrite))
            except ValueError as error:
                raise ImageError(f"{path.name} cannot be given other addresses: {error}") from error
            changed += before != after
            path.write_bytes(after)
        if kind == RTM_NEWADDR and change.places and not changed:
            raise ImageError(f"the dump does not have the address {change.places[0].old}")


def _rewritten(
    image: bytes, magic: int, wanted: int, change: Readdressing, rewrite: Callable[[bytes, Readdressing], bytes]
) -> Iterator[bytes]:
    """Give an image in parts, each message of the kind that is wanted as `rewrite` has it, or left out."""
    if not image:
        return
    if len(image) < 4 or struct.unpack_from("=I", image)[0] != magic:
        raise ValueError("it begins with something else")
    yield image[:4]
    at = 4
    while at < len(image):
        if at + HEADER.size > len(image):
            raise ValueError("it ends within a message")
        length, kind, *rest = HEADER.unpack_from(image, at)
        if not HEADER.size <= length <= len(image) - at:
            raise ValueError(f"it has a message of {length} bytes")
        record = image[at + HEADER.size : at + length]
        if kind == wanted:
            record = rewrite(record, change)
        if record:
            yield HEADER.pack(HEADER.size + len(record), kind, *rest) + record + bytes(-len(record) % 4)
        at += length + 3 & ~3


def usable_at_once(images: Path) -> None:
    """Have each IPv6 address be restored without duplicate address detection. Again is no harm."""
    for path in images.glob("ifaddr-*.img"):
        path.write_bytes(without_detection(path.read_bytes()))


def without_detection(image: bytes) -> bytes:
    """Set IFA_F_NODAD in every IPv6 address. Raises `RestoreError` where this is no such image."""
    if not image:
        return image
    if len(image) < 4 or struct.unpack_from("=I", image)[0] != MAGIC:
        raise RestoreError("the image of the workload's addresses is not of `ip address save`")
    data = bytearray(image)
    at = 4
    while at + HEADER.size + ADDRESS.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, at)
        family, _, flags, _, _ = ADDRESS.unpack_from(data, at + HEADER.size)
        if kind == RTM_NEWADDR and family == socket.AF_INET6:
            data[at + HEADER.size + 2] = flags | IFA_F_NODAD
            _set_flags(data, at + HEADER.size + ADDRESS.size, at + length)
        at += max(length + 3 & ~3, HEADER.size)
    return bytes(data)


def _set_flags(data: bytearray, at: int, end: int) -> None:
    while at + 4 <= end:
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        if kind == IFA_FLAGS:
            (flags,) = struct.unpack_from("=I", data, at + 4)
            struct.pack_into("=I", data, at + 4, flags | IFA_F_NODAD)
        at += length + 3 & ~3
