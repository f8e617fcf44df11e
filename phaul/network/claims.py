"""Ask the network who claims an address: ARP probes (RFC 5227), and neighbour solicitations as for duplicate detection.

Called by `network.identity` in PREFLIGHT, on the destination. Who answers is the source, as long as the workload runs
there; anybody else is a duplicate. Asks from no address, so that no neighbour learns anything from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import structlog

from phaul.migration.facts import AddressFacts, ClaimFacts
from phaul.network.closing import close_later
from phaul.network.neighbours import (
    ALL_NODES_MAC,
    ARP_REQUEST,
    ARPHRD_ETHER,
    BROADCAST_MAC,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV6,
    ICMPV6,
    ICMPV6_NEIGHBOUR_ADVERTISEMENT,
    MAC_BYTES,
    ND_HOP_LIMIT,
    NO_MAC,
    internet_checksum,
)

log = structlog.get_logger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LISTEN_SECONDS = 0.1  # neighbours are on the same segment and answer within a millisecond or so
LINGER_SECONDS = 0.03  # once somebody has claimed each address, for who else does
ICMPV6_NEIGHBOUR_SOLICITATION = 135
NOBODY4, NOBODY6 = ipaddress.IPv4Address(0), ipaddress.IPv6Address(0)
SOLICITED_NODES = ipaddress.IPv6Address("ff02::1:ff00:0")  # RFC 4291, section 2.7.1
ETHERNET_BYTES = 14
ADVERTISEMENT_AT = ETHERNET_BYTES + 40  # after a header of IPv6 without extensions, as RFC 4861 has it
FRAME_BYTES = 2048
SO_ATTACH_FILTER = 26  # asm-generic/socket.h

# Only advertisements come through: memory of other migrations may pass on the same device. Each instruction is (code,
# jump if true, jump if false, operand) of linux/filter.h: load byte 20, is it ICMPv6, load byte 54, is it 136.
_ADVERTISEMENTS = (
    (0x30, 0, 0, ETHERNET_BYTES + 6),
    (0x15, 0, 3, ICMPV6),
    (0x30, 0, 0, ADVERTISEMENT_AT),
    (0x15, 0, 1, ICMPV6_NEIGHBOUR_ADVERTISEMENT),
    (0x06, 0, 0, FRAME_BYTES),
    (0x06, 0, 0, 0),
)


def arp_probe(mac: bytes, address: ipaddress.IPv4Address) -> bytes:
    """Build an Ethernet frame, 42 bytes, that asks from nobody's address who has `address`."""
    head = struct.pack("!HHBBH", ARPHRD_ETHER, 0x0800, MAC_BYTES, 4, ARP_REQUEST)
    ethernet = BROADCAST_MAC + mac + struct.pack("!H", ETHERTYPE_ARP)
    return ethernet + head + mac + NOBODY4.packed + NO_MAC + address.packed


def neighbour_solicitation(mac: bytes, address: ipaddress.IPv6Address) -> bytes:
    """Build an Ethernet frame, 78 bytes, of RFC 4862, section 5.4.2; who has the address tells it to all nodes."""
    low = address.packed[-3:]
    group = SOLICITED_NODES.packed[:-3] + low
    body = struct.pack("!I", 0) + address.packed
    length = 4 + len(body)
    pseudo_header = NOBODY6.packed + group + struct.pack("!II", length, ICMPV6)
    unsummed = struct.pack("!BBH", ICMPV6_NEIGHBOUR_SOLICITATION, 0, 0) + body
    checksum = internet_checksum(pseudo_header + unsummed)
    icmpv6 = struct.pack("!BBH", ICMPV6_NEIGHBOUR_SOLICITATION, 0, checksum) + body
    ipv6 = struct.pack("!IHBB", 6 << 28, length, ICMPV6, ND_HOP_LIMIT) + NOBODY6.packed + group
    return ALL_NODES_MAC[:2] + b"\xff" + low + mac + struct.pack("!H", ETHERTYPE_IPV6) + ipv6 + icmpv6


def read_claim(frame: bytes) -> ClaimFacts | None:
    """Say who claims which address in a frame; None where nobody does."""
    kind = int.from_bytes(frame[12:14])
    if kind == ETHERTYPE_ARP and len(frame) >= 42:
        sender = ipaddress.IPv4Address(frame[28:32])
        return None if sender == NOBODY4 else ClaimFacts(str(sender), frame[22:28].hex(":"))
    kinds = frame[20:21] + frame[ADVERTISEMENT_AT : ADVERTISEMENT_AT + 1]
    if (
        kind == ETHERTYPE_IPV6
        and len(frame) >= ADVERTISEMENT_AT + 24
        and kinds == bytes((ICMPV6, ICMPV6_NEIGHBOUR_ADVERTISEMENT))
    ):
        target = ipaddress.IPv6Address(frame[ADVERTISEMENT_AT + 8 : ADVERTISEMENT_AT + 24])
        return ClaimFacts(str(target), frame[6:12].hex(":"))
    return None


async def claims(addresses: Sequence[AddressFacts]) -> tuple[ClaimFacts, ...]:
    """Ask for each address on its device, and give who says soon that it has one.

    That takes a tenth of a second, and less where each is claimed: who holds an address answers as fast as others do.
    Never raises: where it cannot be asked, nobody claims anything.
    """
    devices = dict.fromkeys(each.device for each in addresses)
    asked = [(device, [each.address for each in addresses if each.device == device]) for device in devices]
    found = await asyncio.gather(*(_claims_on(device, texts) for device, texts in asked))
    return tuple(dict.fromkeys(claim for some in found for claim in some))


async def _claims_on(device: str, texts: Sequence[str]) -> list[ClaimFacts]:
    wanted = {ipaddress.ip_address(text) for text in texts}
    found: list[ClaimFacts] = []
    try:
        sockets = [_open(device, ETHERTYPE_ARP), _open(device, ETHERTYPE_IPV6)]
    except OSError as error:
        log.warning("claims.not_asked", device=device, reason=error.strerror)
        return found
    try:
        _, _, _, hardware_type, mac = sockets[0].getsockname()
        if hardware_type != ARPHRD_ETHER or len(mac) != MAC_BYTES:
            return found
        for address in wanted:
            if isinstance(address, ipaddress.IPv4Address):
                sockets[0].send(arp_probe(mac, address))
            else:
                sockets[0].send(neighbour_solicitation(mac, address))
        complete = asyncio.Event()
        listening = [asyncio.create_task(_listen(each, found, wanted, complete)) for each in sockets]
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LISTEN_SECONDS):
                    await complete.wait()
                    await asyncio.sleep(LINGER_SECONDS)
        finally:
            # Also where the question is given up: the loop would watch the descriptors' numbers when they are others'.
            for task in listening:
                task.cancel()
            await asyncio.gather(*listening, return_exceptions=True)
    except OSError as error:
        log.warning("claims.not_asked", device=device, reason=error.strerror)
    finally:
        for each in sockets:
            close_later(each)
    return [claim for claim in found if ipaddress.ip_address(claim.address) in wanted]


def _open(device: str, kind: int) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        if kind == ETHERTYPE_IPV6:
            program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _ADVERTISEMENTS)
            kept = ctypes.create_string_buffer(program)
            head = struct.pack("@HP", len(_ADVERTISEMENTS), ctypes.addressof(kept))
            raw.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, head)
        raw.bind((device, kind))
    except OSError:
        raw.close()
        raise
    return raw


async def _listen(
    raw: socket.socket, found: list[ClaimFacts], wanted: AbstractSet[Address], complete: asyncio.Event
) -> None:
    """Note who claims an address; tell once each of `wanted` was claimed."""
    loop = asyncio.get_running_loop()
    while True:
        claim = read_claim(await loop.sock_recv(raw, FRAME_BYTES))
        if claim is not None:
            found.append(claim)
            if wanted <= {ipaddress.ip_address(each.address) for each in found}:
                complete.set()
