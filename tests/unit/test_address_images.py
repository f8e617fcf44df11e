"""The image of a namespace's addresses: every IPv6 address is made usable at once, and nothing else is touched."""

from __future__ import annotations

import socket
import struct

import pytest

from phaul.criu.address_images import IFA_F_NODAD, IFA_FLAGS, MAGIC, without_detection
from phaul.errors import RestoreError

PERMANENT = 0x80
IFA_ADDRESS = 1


def entry(family: int, packed: bytes, flags: int) -> bytes:
    """One RTM_NEWADDR as the kernel sends it."""
    address = struct.pack("=HH", 4 + len(packed), IFA_ADDRESS) + packed
    body = struct.pack("=BBBBI", family, 64, flags & 0xFF, 0, 2) + address + struct.pack("=HHI", 8, IFA_FLAGS, flags)
    return struct.pack("=IHHII", 16 + len(body), 20, 2, 1, 0) + body


def flags_of(image: bytes) -> list[tuple[int, int]]:
    """The flags of each address, as its header and as its attribute have them."""
    found, at = [], 4
    while at < len(image):
        (length,) = struct.unpack_from("=I", image, at)
        found.append((image[at + 18], struct.unpack_from("=I", image, at + length - 4)[0]))
        at += length
    return found


def test_ipv6_addresses_are_usable_at_once() -> None:
    four = entry(socket.AF_INET, socket.inet_aton("10.0.0.1"), PERMANENT)
    six = entry(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, "fd00::1"), PERMANENT)
    image = struct.pack("=I", MAGIC) + four + six + six
    changed = without_detection(image)
    both = PERMANENT | IFA_F_NODAD
    assert flags_of(changed) == [(PERMANENT, PERMANENT), (both, both), (both, both)]
    assert len(changed) == len(image)
    assert without_detection(changed) == changed


def test_another_file_is_not_changed_blindly() -> None:
    assert without_detection(b"") == b""
    with pytest.raises(RestoreError):
        without_detection(b"something else")
