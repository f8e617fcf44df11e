"""Remove nftables tables by one netlink message, in a fraction of a millisecond: no child process on the way to RESUME.

Called by `network.fence`. It knows nothing but "these tables are gone afterwards"; whatever has to be made is made by
`nft`, whose syntax people can read.

The layout is that of linux/netfilter/nfnetlink.h and nf_tables.h: a batch is BEGIN, messages, END, and is applied
as a whole or not at all.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

from phaul.errors import PhaulError

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN = 0x10
NFNL_MSG_BATCH_END = 0x11
NFT_MSG_NEWTABLE = NFNL_SUBSYS_NFTABLES << 8
NFT_MSG_DELTABLE = (NFNL_SUBSYS_NFTABLES << 8) | 2
NFTA_TABLE_NAME = 1
FAMILIES = {"inet": 1, "arp": 3, "netdev": 5}  # NFPROTO_INET, NFPROTO_ARP, NFPROTO_NETDEV

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_CREATE = 0x400
NLMSG_ERROR = 2
HEADER_BYTES = 16
ANSWER_BYTES = 8192  # an error repeats the request it is about; ours are far smaller
ANSWER_TIMEOUT_SECONDS = 5.0  # the kernel answers before sendto returns; this is for a kernel that answers never


class NftablesError(PhaulError):
    """The kernel refused a change of its packet filter."""


def removal_batch(tables: Sequence[tuple[str, str]]) -> tuple[bytes, int]:
    """Build the batch after which none of `tables` (family, name) is there; give it and the last sequence number.

    Each table is declared first and deleted then, so that it is no error where there was none: DESTROYTABLE does the
    same only from kernel 6.3 on.
    """
    sequence = 1
    batch = _message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, sequence, 0, NFNL_SUBSYS_NFTABLES, b"")
    for family, name in tables:
        attribute = _attribute(NFTA_TABLE_NAME, name.encode() + b"\0")
        for kind, flags in ((NFT_MSG_NEWTABLE, NLM_F_CREATE), (NFT_MSG_DELTABLE, NLM_F_ACK)):
            sequence += 1
            batch += _message(kind, NLM_F_REQUEST | flags, sequence, FAMILIES[family], 0, attribute)
    last = sequence
    return batch + _message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, last + 1, 0, NFNL_SUBSYS_NFTABLES, b""), last


def remove_tables(tables: Sequence[tuple[str, str]]) -> socket.socket:
    """Remove tables, all or none; one that is not there is no error. Blocks for a fraction of a millisecond.

    Gives the socket that was used, for the caller to close where nobody waits: see `network.closing`. Raises
    `NftablesError` with everything as it was and the socket closed.
    """
    batch, last = removal_batch(tables)
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    try:
        channel.settimeout(ANSWER_TIMEOUT_SECONDS)
        channel.bind((0, 0))
        channel.sendto(batch, (0, 0))
        while last not in read_answers(channel.recv(ANSWER_BYTES)):
            pass
    except OSError as error:
        channel.close()
        names = ", ".join(f"{family} {name}" for family, name in tables)
        reason = error.strerror or str(error)
        raise NftablesError(f"the packet filter tables {names} could not be removed: {reason}") from error
    return channel


def read_answers(data: bytes) -> set[int]:
    """Give the sequence numbers that were acknowledged. Raises `OSError` for the first that was refused."""
    acknowledged: set[int] = set()
    while len(data) >= HEADER_BYTES + 4:
        length, kind, _, sequence, _, code = struct.unpack_from("=IHHIIi", data)
        if kind == NLMSG_ERROR:
            if code:
                raise OSError(-code, os.strerror(-code))
            acknowledged.add(sequence)
        data = data[(length + 3) & ~3 :]
    return acknowledged


def _attribute(kind: int, value: bytes) -> bytes:
    padding = -len(value) % 4
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(padding)


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, attributes: bytes) -> bytes:
    body = struct.pack("=BB", family, 0) + struct.pack("!H", resource) + attributes
    return struct.pack("=IHHII", HEADER_BYTES + len(body), kind, flags, sequence, 0) + body
