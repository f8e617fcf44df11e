"""The routes and rules of a network namespace, taken as the kernel gives them and given to another as they are.

Called by `network.own_content`, in the namespace that is meant. What ``ip route save`` and ``restore`` do, but for all
tables at once, and without the routes that the kernel makes itself for addresses. Blocks; opens a socket for each call.

A record is what follows the header of an RTM_NEWROUTE or RTM_NEWRULE message (linux/rtnetlink.h, linux/fib_rules.h).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence

NETLINK_ROUTE = 0
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP, NLM_F_CREATE = 0x1, 0x4, 0x10, 0x300, 0x400
HEADER = struct.Struct("=IHHII")  # nlmsghdr
ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths, TOS, table, protocol, scope, type, flags
RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA = 5, 9, 18
RTPROT_KERNEL = 2
RTM_F_CLONED = 0x200
RTNH_F_ONLINK = 0x4  # the one flag of a next hop that a person sets; the rest says what has become of it
FAMILIES = (socket.AF_INET, socket.AF_INET6)
# The answer comes before the next message is sent, so this is for a kernel that answers never.
ANSWER_TIMEOUT_SECONDS = 5.0
ANSWER_BYTES = 1 << 16
DUMPS = 5  # until one is not disturbed by a change
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)  # the route to the gateway is not there yet


def routes() -> list[bytes]:
    """Give the routes of all tables, but those that the kernel makes itself."""
    found = (record for family in FAMILIES for record in dump(RTM_GETROUTE, family))
    return [stored for record in found if (stored := as_stored(record))]


def rules() -> list[bytes]:
    """Give all rules, those that every namespace begins with as well."""
    return [record for family in FAMILIES for record in dump(RTM_GETRULE, family)]


def as_stored(record: bytes) -> bytes:
    """Give a route as it can be made again; nothing for one that follows from an address."""
    family, *fields, flags = ROUTE.unpack_from(record)
    if fields[4] == RTPROT_KERNEL or flags & RTM_F_CLONED or family not in FAMILIES:
        return b""
    return ROUTE.pack(family, *fields, flags & RTNH_F_ONLINK) + record[ROUTE.size :]


def add_routes(records: Sequence[bytes]) -> None:
    """Make routes, those without a gateway first: by them the gateways of the others are reached.

    One that is there is no error. Raises `OSError` with some of them made.
    """
    left = sorted(records, key=has_gateway)
    with open_channel() as channel:
        while left:
            waiting: list[bytes] = []
            failure: OSError | None = None
            for record in left:
                try:
                    ask(channel, RTM_NEWROUTE, NLM_F_CREATE, record)
                except OSError as error:
                    if error.errno == errno.EEXIST:
                        continue
                    if error.errno not in UNREACHABLE:
                        raise
                    failure = error
                    waiting.append(record)
            if failure is not None and len(waiting) == len(left):
                raise failure
            left = waiting


def set_rules(records: Sequence[bytes]) -> None:
    """Have these rules and no others. Raises `OSError` with some of that done."""
    there = rules()
    with open_channel() as channel:
        for record in _missing(there, records):
            ask(channel, RTM_DELRULE, 0, record)
        for record in _missing(records, there):
            ask(channel, RTM_NEWRULE, NLM_F_CREATE, record)


def has_gateway(record: bytes) -> bool:
    """Whether another route leads to where this one goes on."""
    at = ROUTE.size
    while at + 4 <= len(record):
        length, kind = struct.unpack_from("=HH", record, at)
        if kind in (RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA):
            return True
        at += max(length + 3 & ~3, 4)
    return False


def _missing(records: Iterable[bytes], among: Sequence[bytes]) -> list[bytes]:
    return [record for record in records if record not in among]


def open_channel() -> socket.socket:
    """Open a socket to the kernel, in the namespace of this thread."""
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
    channel.settimeout(ANSWER_TIMEOUT_SECONDS)
    channel.bind((0, 0))
    return channel


def ask(channel: socket.socket, kind: int, flags: int, record: bytes) -> None:
    """Have the kernel do something. Raises `OSError` with its answer."""
    header = HEADER.pack(HEADER.size + len(record), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0)
    channel.sendto(header + record, (0, 0))
    answer = channel.recv(ANSWER_BYTES)
    (code,) = struct.unpack_from("=i", answer, HEADER.size)
    if code:
        raise OSError(-code, os.strerror(-code))


def dump(kind: int, family: int) -> list[bytes]:
    """Give the records of all that the kernel has of a kind; of devices the family is 0."""
    for _ in range(DUMPS):
        with open_channel() as channel:
            request = bytes((family,)) + bytes(ROUTE.size - 1)
            channel.sendto(
                HEADER.pack(HEADER.size + len(request), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + request, (0, 0)
            )
            records: list[bytes] = []
            while (disturbed := _read(channel.recv(ANSWER_BYTES), family, records)) is None:
                pass
        if not disturbed:
            return records
    raise OSError(errno.EAGAIN, "the routes change all the time")


def _read(data: bytes, family: int, records: list[bytes]) -> bool | None:
    """Take the records of a part of a dump; say at its end whether it was disturbed."""
    while len(data) >= HEADER.size:
        length, kind, flags, *_ = HEADER.unpack_from(data)
        if flags & NLM_F_DUMP_INTR:
            return True
        if kind == NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", data, HEADER.size)
            raise OSError(-code, os.strerror(-code))
        if kind == NLMSG_DONE:
            return False
        record = data[HEADER.size : length]
        if record[0] == family:  # where a family is not built in, the kernel gives what it has
            records.append(record)
        data = data[length + 3 & ~3 :]
    return None
