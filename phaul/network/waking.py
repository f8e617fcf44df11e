"""Have a namespace that was cut off speak at once: its links pass packets, and its neighbours are asked again.

Called by `network.own_links`, in the namespace that is meant. CRIU ends the repair mode of restored sockets before the
fence is lifted and the link connected, and each says a word then (a window probe; criu/soccr, 4.2.1). The kernel asks
for the neighbour, nobody hears it, and it asks again after a second (retrans_time_ms): for that second an IPv4 address
said nothing at all. An entry that is deleted is asked for with the next packet. Blocks.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Collection

from phaul.network.route_replay import FAMILIES, ask, dump, open_channel

RTM_GETLINK, RTM_DELNEIGH, RTM_GETNEIGH = 18, 29, 30  # linux/rtnetlink.h
LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, kind, index, flags, change
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, index of the device, state, flags, kind
ATTRIBUTE = struct.Struct("=HH")
IFF_UP, IFF_RUNNING = 0x1, 0x40  # linux/if.h
NDA_DST = 1
UNANSWERED = 0x01 | 0x20  # NUD_INCOMPLETE, NUD_FAILED: linux/neighbour.h
# The kernel takes a millisecond or so for it, longer where somebody else changes devices: then the copy runs all the
# same, and its neighbours are asked a second later.
PASSING_SECONDS = 0.1
LOOK_SECONDS = 0.001


def wake(indexes: Collection[int]) -> None:
    """Wait until devices pass packets, a tenth of a second at most; then forget neighbours that have not answered."""
    deadline = time.monotonic() + PASSING_SECONDS
    while any(_drops(each, indexes) for each in dump(RTM_GETLINK, 0)) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    with open_channel() as channel:
        for family in FAMILIES:
            for record in dump(RTM_GETNEIGH, family):
                _, index, state, _, _ = NEIGHBOUR.unpack_from(record)
                to = _destination(record)
                if index in indexes and state & UNANSWERED and to:
                    with contextlib.suppress(OSError):  # it has gone, or answered
                        ask(channel, RTM_DELNEIGH, 0, _named(family, index, to))


def _drops(record: bytes, indexes: Collection[int]) -> bool:
    _, _, index, flags, _ = LINK.unpack_from(record)
    # It drops its packets until a worker of the kernel has heard that the other end of the link is up, and says so here
    # (net/core/link_watch.c, linkwatch_do_dev, 6.12).
    return index in indexes and flags & (IFF_UP | IFF_RUNNING) == IFF_UP


def _named(family: int, index: int, to: bytes) -> bytes:
    return NEIGHBOUR.pack(family, index, 0, 0, 0) + ATTRIBUTE.pack(ATTRIBUTE.size + len(to), NDA_DST) + to


def _destination(record: bytes) -> bytes:
    at = NEIGHBOUR.size
    while at + ATTRIBUTE.size <= len(record):
        length, kind = ATTRIBUTE.unpack_from(record, at)
        if kind == NDA_DST:
            return record[at + ATTRIBUTE.size : at + length]
        at += max(length + 3 & ~3, ATTRIBUTE.size)
    return b""
