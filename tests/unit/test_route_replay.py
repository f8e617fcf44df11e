"""Routes as the kernel gives them: which are taken along, and how."""

from __future__ import annotations

import socket
import struct

from hypothesis import example, given
from hypothesis import strategies as st

from phaul.network.route_replay import as_stored, has_gateway

STATIC, KERNEL = 4, 2
CLONED, LINKDOWN, ONLINK = 0x200, 0x10, 0x4
DESTINATION = struct.pack("=HH4s", 8, 1, bytes((192, 0, 2, 0)))
DEVICE = struct.pack("=HHI", 8, 4, 7)
GATEWAY = struct.pack("=HH4s", 8, 5, bytes((10, 0, 0, 1)))


def route(protocol: int = STATIC, flags: int = 0, family: int = socket.AF_INET, *attributes: bytes) -> bytes:
    head = struct.pack("=BBBBBBBBI", family, 24, 0, 0, 254, protocol, 0, 1, flags)
    return head + b"".join(attributes)


def test_what_follows_from_an_address_is_left_to_the_kernel() -> None:
    assert as_stored(route(KERNEL)) == b""
    assert as_stored(route(flags=CLONED)) == b""
    assert as_stored(route(family=socket.AF_BRIDGE)) == b""


def test_a_route_is_kept_but_for_what_has_become_of_it() -> None:
    attributes = (DESTINATION, DEVICE)
    down = route(STATIC, LINKDOWN | ONLINK, socket.AF_INET, *attributes)
    assert as_stored(down) == route(STATIC, ONLINK, socket.AF_INET, *attributes)


def test_those_with_a_gateway_come_last() -> None:
    assert not has_gateway(route(STATIC, 0, socket.AF_INET, DESTINATION, DEVICE))
    assert has_gateway(route(STATIC, 0, socket.AF_INET, DESTINATION, GATEWAY))


@given(st.binary(max_size=60))
@example(bytes(8))
def test_no_attributes_stop_it(attributes: bytes) -> None:
    has_gateway(route() + attributes)
