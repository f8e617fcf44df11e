"""Tell the neighbours where an address lives now: gratuitous ARP, and unsolicited neighbour advertisements for IPv6.

Called by `network.identity` right after the fence was lifted. The frames are built here, byte by byte, by pure
functions; sending them never waits: a frame that the device does not take at once is reported and left out. Nothing
is received here, and a neighbour's answer is never waited for.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Sequence

import structlog

from phaul.migration.facts import AddressFacts
from phaul.network.closing import close_later

log = structlog.get_logger(__name__)

ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ARP_REQUEST = 1
ARP_REPLY = 2
ARPHRD_ETHER = 1  # linux/if_arp.h; the only kind of device whose neighbours are asked for by ARP or NDP here
MAC_BYTES = 6
BROADCAST_MAC = b"\xff" * MAC_BYTES
NO_MAC = bytes(MAC_BYTES)
ALL_NODES = ipaddress.IPv6Address("ff02::1")
ALL_NODES_MAC = bytes.fromhex("333300000001")  # RFC 2464, section 7

ICMPV6 = 58
ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136
NA_FLAG_OVERRIDE = 0x20000000  # RFC 4861, section 4.4: R is 0x80000000, S 0x40000000
OPTION_TARGET_LINK_LAYER_ADDRESS = 2
ND_HOP_LIMIT = 255  # RFC 4861, section 7.1.2: anything less is dropped


def gratuitous_arp(mac: bytes, address: ipaddress.IPv4Address, operation: int) -> bytes:
    """Build an Ethernet frame, 42 bytes, that says to everybody that `address` is at `mac`.

    A request is RFC 5227's announcement. A reply repeats `mac` as the hardware address it is meant for: only so does
    Linux take it for gratuitous (net/ipv4/arp.c, arp_is_garp, 6.12), and let it override an entry that was confirmed
    within the last second.
    """
    target_mac = mac if operation == ARP_REPLY else NO_MAC
    ethernet = BROADCAST_MAC + mac + struct.pack("!H", ETHERTYPE_ARP)
    head = struct.pack("!HHBBH", ARPHRD_ETHER, 0x0800, MAC_BYTES, len(address.packed), operation)
    return ethernet + head + mac + address.packed + target_mac + address.packed


def internet_checksum(data: bytes) -> int:
    """Give the checksum of RFC 1071 over `data`, padded with a zero to an even length."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def neighbour_advertisement(mac: bytes, address: ipaddress.IPv6Address) -> bytes:
    """Build an Ethernet frame, 86 bytes, that says to all nodes that `address` is at `mac`, overriding what they know.

    Unsolicited, as RFC 4861 section 7.2.6 has it: from the address itself, S not set, O set. A neighbour that has no
    entry for the address makes none of it.
    """
    body = struct.pack("!I", NA_FLAG_OVERRIDE) + address.packed
    body += struct.pack("!BB", OPTION_TARGET_LINK_LAYER_ADDRESS, 1) + mac
    length = 4 + len(body)
    pseudo_header = address.packed + ALL_NODES.packed + struct.pack("!II", length, ICMPV6)
    unsummed = struct.pack("!BBH", ICMPV6_NEIGHBOUR_ADVERTISEMENT, 0, 0) + body
    checksum = internet_checksum(pseudo_header + unsummed)
    icmpv6 = struct.pack("!BBH", ICMPV6_NEIGHBOUR_ADVERTISEMENT, 0, checksum) + body
    ipv6 = struct.pack("!IHBB", 6 << 28, length, ICMPV6, ND_HOP_LIMIT) + address.packed + ALL_NODES.packed
    return ALL_NODES_MAC + mac + struct.pack("!H", ETHERTYPE_IPV6) + ipv6 + icmpv6


def announcements(mac: bytes, address: str) -> tuple[bytes, ...]:
    """Give the frames that announce one address: a request and a reply for IPv4, one advertisement for IPv6."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return gratuitous_arp(mac, parsed, ARP_REQUEST), gratuitous_arp(mac, parsed, ARP_REPLY)
    return (neighbour_advertisement(mac, parsed),)


def announce(addresses: Sequence[AddressFacts], *, at_once: bool = False) -> tuple[str, ...]:
    """Send the announcements of each address on its device, and give what could not be told, one sentence each.

    A device without Ethernet neighbours (loopback, tunnels) has nobody to tell and is passed over. Never blocks; is
    called in the event loop's thread, or with `at_once` in any other, where its sockets are then closed.
    """
    failures: list[str] = []
    for device in dict.fromkeys(each.device for each in addresses):
        here = [each.address for each in addresses if each.device == device]
        try:
            _announce_on(device, here, at_once=at_once)
        except OSError as error:
            failures.append(f"{', '.join(here)} could not be announced on {device}: {error.strerror or error}")
    return tuple(failures)


def _announce_on(device: str, addresses: Sequence[str], *, at_once: bool) -> None:
    # Protocol 0: the socket receives nothing, so that nothing piles up in it (packet(7)).
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        raw.bind((device, 0))
        _, _, _, hardware_type, mac = raw.getsockname()
        if hardware_type != ARPHRD_ETHER or len(mac) != MAC_BYTES:
            log.debug("announce.passed_over", device=device, hardware_type=hardware_type)
            return
        for address in addresses:
            for frame in announcements(mac, address):
                raw.send(frame)
    finally:
        if at_once:
            raw.close()
        else:
            close_later(raw)
    log.debug("announce.sent", device=device, addresses=list(addresses))
