"""Frames that announce an address, byte by byte. The expected ones were sent by Linux 6.18 itself, captured on a veth
with the sysctls arp_notify and ndisc_notify on."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.network import neighbours

MAC = bytes.fromhex("02000000000a")
KERNEL_ARP_REQUEST = (
    "ffffffffffff02000000000a0806" + "0001080006040001" + "02000000000ac0000205" + "000000000000c0000205"
)
KERNEL_ADVERTISEMENT = (
    "33330000000102000000000a86dd"
    + "6000000000203aff"
    + "20010db8000000000000000000000005"
    + "ff020000000000000000000000000001"
    + "8800f91920000000"
    + "20010db8000000000000000000000005"
    + "020102000000000a"
)
KERNEL_ADVERTISEMENT_OF_LINK_LOCAL = (
    "33330000000102000000000a86dd6000000000203afffe80000000000000000000fffe00000aff0200000000000000000000000000018800598020"
    "000000fe80000000000000000000fffe00000a020102000000000a"
)


def test_arp_announcement_is_what_the_kernel_sends() -> None:
    request, reply = neighbours.announcements(MAC, "192.0.2.5")
    assert request.hex() == KERNEL_ARP_REQUEST
    # The reply differs in the operation and in naming our own MAC as the one it is meant for.
    assert reply.hex() == KERNEL_ARP_REQUEST.replace("06040001", "06040002").replace("000000000000c", "02000000000ac")


@pytest.mark.parametrize(
    ("address", "frame"),
    [("2001:db8::5", KERNEL_ADVERTISEMENT), ("fe80::ff:fe00:a", KERNEL_ADVERTISEMENT_OF_LINK_LOCAL)],
)
def test_advertisement_is_what_the_kernel_sends(address: str, frame: str) -> None:
    assert [each.hex() for each in neighbours.announcements(MAC, address)] == [frame]


@given(st.binary(min_size=6, max_size=6), st.ip_addresses(v=6))
def test_checksum_of_any_advertisement_is_right(mac: bytes, address: ipaddress.IPv6Address) -> None:
    frame = neighbours.neighbour_advertisement(mac, address)
    ipv6, icmpv6 = frame[14:54], frame[54:]
    length = int.from_bytes(ipv6[4:6])
    assert length == len(icmpv6)
    pseudo_header = ipv6[8:40] + length.to_bytes(4) + (58).to_bytes(4)
    assert neighbours.internet_checksum(pseudo_header + icmpv6) == 0


@given(st.binary(min_size=6, max_size=6), st.ip_addresses(v=4))
def test_arp_frames_name_mac_and_address_on_both_sides(mac: bytes, address: ipaddress.IPv4Address) -> None:
    for frame in neighbours.announcements(mac, str(address)):
        assert len(frame) == 42
        assert frame[6:12] == frame[22:28] == mac
        assert frame[28:32] == frame[38:42] == address.packed


def test_checksum_of_rfc_1071_example() -> None:
    assert neighbours.internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert neighbours.internet_checksum(b"\x01") == neighbours.internet_checksum(b"\x01\x00")


async def test_a_device_that_is_not_there_is_reported_and_does_not_raise() -> None:
    from phaul.migration.facts import AddressFacts

    (failure,) = neighbours.announce([AddressFacts("192.0.2.5", 24, "nodevice0")])
    assert "192.0.2.5" in failure
    assert "nodevice0" in failure
