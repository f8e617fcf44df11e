"""Other addresses in what the kernel says of a network namespace, and in CRIU's images of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Interface, ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from phaul.criu.address_images import HEADER, MAGIC, ROUTE_MAGIC, RTM_NEWADDR, RTM_NEWROUTE, set_addresses
from phaul.criu.images import ImageError
from phaul.migration.readdressing import (
    ADDRESS,
    HOP,
    IFA_ADDRESS,
    IFA_BROADCAST,
    IFA_LOCAL,
    ROUTE,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_SRC,
    RTA_VIA,
    RTNH_F_ONLINK,
    RTPROT_KERNEL,
    STAYING,
    Attributes,
    NewPlace,
    Readdressing,
    _attributes,
    _packed,
    address_record,
    gateways_of,
    on_link_of,
    readdressing_from,
    route_record,
    rule_record,
)
from phaul.network.addresses import Entry
from phaul.network.own_content import readdressed

STATIC = 4
INDEX = 7
LABEL = 3  # IFA_LABEL
PLACE = NewPlace(INDEX, "10.0.0.5/24", "10.0.9.5/16")
SIX = NewPlace(INDEX, "fd00::5/64", "fd09::5/64")
CHANGE = Readdressing((PLACE, SIX), (("10.0.0.1", "10.0.9.1"), ("fe80::1", "fe80::9")))


def packed(address: str) -> bytes:
    return ip_address(address).packed


def address(interface: str, *more: tuple[int, bytes], index: int = INDEX) -> bytes:
    found = ip_interface(interface)
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    own: Attributes = [(IFA_ADDRESS, found.ip.packed), *([(IFA_LOCAL, found.ip.packed)] if found.version == 4 else [])]
    return ADDRESS.pack(family, found.network.prefixlen, 0x80, 0, index) + _packed([*own, *more])


def route(
    to: str, *more: tuple[int, bytes], protocol: int = STATIC, source: int = 0, index: int = INDEX, flags: int = 0
) -> bytes:
    network = ip_network(to)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    own: Attributes = [(RTA_DST, network.network_address.packed)] if network.prefixlen else []
    device = [(RTA_OIF, struct.pack("=I", index))] if index else []
    head = ROUTE.pack(family, network.prefixlen, source, 0, 254, protocol, 0, 1, flags)
    return head + _packed([*own, *device, *more])


def gateway(text: str) -> tuple[int, bytes]:
    return RTA_GATEWAY, packed(text)


def preferred(text: str) -> tuple[int, bytes]:
    return RTA_PREFSRC, packed(text)


def hops(*gateways: str, flags: int = 0) -> tuple[int, bytes]:
    inner = [_packed([gateway(each)]) for each in gateways]
    return RTA_MULTIPATH, b"".join(HOP.pack(HOP.size + len(each), flags, 3, INDEX) + each for each in inner)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (address("10.0.0.5/24"), address("10.0.9.5/16")),
        (address("fd00::5/64"), address("fd09::5/64")),
        (
            address("10.0.0.5/24", (IFA_BROADCAST, packed("10.0.0.255")), (LABEL, b"eth0:x\0")),
            address("10.0.9.5/16", (IFA_BROADCAST, packed("10.0.255.255")), (LABEL, b"eth0:x\0")),
        ),
        (
            address("10.0.0.5/24", (IFA_BROADCAST, packed("10.0.0.7"))),  # which somebody has chosen
            address("10.0.9.5/16", (IFA_BROADCAST, packed("10.0.0.7"))),
        ),
        (address("10.0.0.6/24"), address("10.0.0.6/24")),
        (address("10.0.0.5/24", index=8), address("10.0.0.5/24", index=8)),
    ],
)
def test_an_address(before: bytes, after: bytes) -> None:
    assert address_record(before, CHANGE) == after


def test_the_other_end_of_a_line_stays_with_its_prefix() -> None:
    head = ADDRESS.pack(socket.AF_INET, 30, 0x80, 0, INDEX)
    ends = [(IFA_ADDRESS, packed("192.0.2.1")), (IFA_LOCAL, packed("10.0.0.5"))]
    changed = [(IFA_ADDRESS, packed("192.0.2.1")), (IFA_LOCAL, packed("10.0.9.5"))]
    assert address_record(head + _packed(ends), CHANGE) == head + _packed(changed)
    entry = Entry("10.0.0.5", 30, INDEX, 0, 0, peer="192.0.2.1")
    assert readdressed(entry, CHANGE) == dataclasses.replace(entry, address="10.0.9.5")


def test_a_single_address_has_nobody_to_say_something_to_all_to() -> None:
    change = Readdressing((NewPlace(INDEX, "10.0.0.5/24", "10.0.9.5/32"),))
    before = address("10.0.0.5/24", (IFA_BROADCAST, packed("10.0.0.255")))
    assert address_record(before, change) == address("10.0.9.5/32")
    entry = Entry("10.0.0.5", 24, INDEX, 0, 0, broadcast="10.0.0.255")
    assert readdressed(entry, change) == Entry("10.0.9.5", 32, INDEX, 0, 0)
    assert readdressed(entry, CHANGE) == Entry("10.0.9.5", 16, INDEX, 0, 0, broadcast="10.0.255.255")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # The kernel makes these itself for the new address.
        (route("10.0.0.0/24", preferred("10.0.0.5"), protocol=RTPROT_KERNEL), b""),
        (route("fd00::/64", protocol=RTPROT_KERNEL), b""),
        (route("10.0.0.255/32", protocol=RTPROT_KERNEL), b""),
        (route("172.16.0.0/12", preferred("172.16.0.1"), protocol=RTPROT_KERNEL),) * 2,
        (route("10.0.0.0/24", preferred("10.0.0.5")), route("10.0.0.0/16", preferred("10.0.9.5"))),
        (route("10.0.0.0/24", index=8),) * 2,
        (route("10.0.0.0/24", gateway("10.0.0.7")),) * 2,
        (route("0.0.0.0/0", gateway("10.0.0.1")), route("0.0.0.0/0", gateway("10.0.9.1"))),
        (route("::/0", gateway("fe80::1")), route("::/0", gateway("fe80::9"))),
        (route("192.0.2.0/24", preferred("10.0.0.5")), route("192.0.2.0/24", preferred("10.0.9.5"))),
        (route("192.0.2.0/24", preferred("10.0.0.6")),) * 2,
        (route("0.0.0.0/0", hops("10.0.0.1", "10.0.0.2")), route("0.0.0.0/0", hops("10.0.9.1", "10.0.0.2"))),
        (
            route("0.0.0.0/0", (RTA_VIA, struct.pack("=H", socket.AF_INET6) + packed("fe80::1"))),
            route("0.0.0.0/0", (RTA_VIA, struct.pack("=H", socket.AF_INET6) + packed("fe80::9"))),
        ),
        (
            route("fd77::/64", (RTA_SRC, packed("fd00::5")), source=128),
            route("fd77::/64", (RTA_SRC, packed("fd09::5")), source=128),
        ),
        (route("fd77::/64", (RTA_SRC, packed("fd00::5")), source=127),) * 2,
        (route("10.0.0.5/32"), route("10.0.9.5/32")),
    ],
)
def test_a_route(before: bytes, after: bytes) -> None:
    assert route_record(before, CHANGE) == after


def test_the_network_of_an_address_that_stays_stays() -> None:
    change = Readdressing((dataclasses.replace(PLACE, alone=False),))
    assert route_record(route("10.0.0.0/24"), change) == route("10.0.0.0/24")
    kernels = route("10.0.0.0/24", preferred("10.0.0.5"), protocol=RTPROT_KERNEL)
    assert route_record(kernels, change) == b""  # the kernel makes one for the other address


def test_a_rule() -> None:
    def rule(text: str, length: int) -> bytes:
        return ROUTE.pack(socket.AF_INET, 0, length, 0, 77, 0, 0, 1, 0) + _packed([(2, packed(text)), (6, b"\1\0\0\0")])

    assert rule_record(rule("10.0.0.5", 32), CHANGE) == rule("10.0.9.5", 32)
    assert rule_record(rule("10.0.0.0", 24), CHANGE) == rule("10.0.0.0", 24)


def test_by_which_gateways_and_where_to_without_one() -> None:
    assert list(gateways_of(route("0.0.0.0/0", gateway("10.0.0.1")))) == [(INDEX, "10.0.0.1")]
    assert list(gateways_of(route("0.0.0.0/0", gateway("10.0.0.1"), flags=RTNH_F_ONLINK))) == []
    assert list(gateways_of(route("0.0.0.0/0", hops("10.0.0.1", "10.0.0.2"), index=0))) == [
        (INDEX, "10.0.0.1"),
        (INDEX, "10.0.0.2"),
    ]
    assert list(gateways_of(route("0.0.0.0/0", hops("10.0.0.1", flags=RTNH_F_ONLINK), index=0))) == []
    assert on_link_of(route("10.0.0.1/32")) == (INDEX, "10.0.0.1/32")
    assert on_link_of(route("::/0")) == (INDEX, "::/0")
    assert on_link_of(route("0.0.0.0/0", gateway("10.0.0.1"))) is None
    assert on_link_of(route("0.0.0.0/0", hops("10.0.0.1"), index=0)) is None


def test_what_the_journal_keeps_is_read_back() -> None:
    kept = json.loads(json.dumps(dataclasses.asdict(CHANGE)))
    assert readdressing_from(kept) == CHANGE
    assert readdressing_from(None) == STAYING
    assert not STAYING
    assert CHANGE.leaving == ("10.0.0.5", "fd00::5")
    swapped = Readdressing((PLACE, NewPlace(INDEX, "10.0.9.5/16", "10.0.0.5/24")))
    assert swapped.leaving == ()


interfaces = st.builds(
    lambda number, prefix: IPv4Interface((number, prefix)), st.integers(1 << 24, (1 << 32) - 1), st.integers(1, 32)
)


@given(interfaces, interfaces, st.booleans())
def test_there_and_back(old: IPv4Interface, new: IPv4Interface, to_all: bool) -> None:
    assume(max(old.network.prefixlen, new.network.prefixlen) < 31)  # with which there is no address of all

    def record(each: IPv4Interface) -> bytes:
        more = [(IFA_BROADCAST, each.network.broadcast_address.packed)] if to_all else []
        return address(str(each), *more)

    there = Readdressing((NewPlace(INDEX, str(old), str(new)),))
    back = Readdressing((NewPlace(INDEX, str(new), str(old)),))
    assert address_record(record(old), there) == record(new)
    assert address_record(record(new), back) == record(old)
    own = route(str(old.network), preferred(str(old.ip)))
    assert route_record(own, there) == route(str(new.network), preferred(str(new.ip)))
    assert route_record(route_record(own, there), back) == own


@given(st.binary(max_size=80), st.sampled_from([address_record, route_record, rule_record]))
def test_bytes_of_any_kind_raise_nothing_else(data: bytes, rewrite: Callable[[bytes, Readdressing], bytes]) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        record = bytes([family]) + data
        with contextlib.suppress(ValueError):
            rewrite(record, CHANGE)
        with contextlib.suppress(ValueError):
            list(gateways_of(record))
        with contextlib.suppress(ValueError):
            on_link_of(record)


@given(st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=20)), max_size=6))
def test_attributes_that_mean_nothing_here_stay(attributes: Attributes) -> None:
    assert _attributes(_packed(attributes)) == attributes


def message(kind: int, record: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(record), kind, 0x2, 5, 6) + record + bytes(-len(record) % 4)


def magic(number: int) -> bytes:
    return struct.pack("=I", number)


def test_the_images_get_them(tmp_path: Path) -> None:
    others = message(RTM_NEWADDR, address("127.0.0.1/8", index=1))
    done = message(3, b"\0\0\0\0")
    (tmp_path / "ifaddr-9.img").write_bytes(
        magic(MAGIC) + others + message(RTM_NEWADDR, address("10.0.0.5/24", (LABEL, b"eth0\0"))) + done
    )
    kernels = message(RTM_NEWROUTE, route("10.0.0.0/24", protocol=RTPROT_KERNEL))
    (tmp_path / "route-9.img").write_bytes(
        magic(ROUTE_MAGIC) + kernels + message(RTM_NEWROUTE, route("0.0.0.0/0", gateway("10.0.0.1")))
    )
    (tmp_path / "route6-9.img").write_bytes(b"")
    set_addresses(tmp_path, Readdressing((PLACE,), CHANGE.gateways))
    after = message(RTM_NEWADDR, address("10.0.9.5/16", (LABEL, b"eth0\0")))
    assert (tmp_path / "ifaddr-9.img").read_bytes() == magic(MAGIC) + others + after + done
    by_new = message(RTM_NEWROUTE, route("0.0.0.0/0", gateway("10.0.9.1")))
    assert (tmp_path / "route-9.img").read_bytes() == magic(ROUTE_MAGIC) + by_new
    assert (tmp_path / "route6-9.img").read_bytes() == b""


@pytest.mark.parametrize(
    "image", [b"", b"abc", magic(ROUTE_MAGIC), magic(MAGIC), magic(MAGIC) + b"\x10", magic(MAGIC) + bytes(16)]
)
def test_an_image_that_does_not_have_the_address_is_refused(tmp_path: Path, image: bytes) -> None:
    path = tmp_path / "ifaddr-9.img"
    path.write_bytes(image)
    set_addresses(tmp_path, STAYING)
    with pytest.raises(ImageError):
        set_addresses(tmp_path, CHANGE)
    assert path.read_bytes() == image
