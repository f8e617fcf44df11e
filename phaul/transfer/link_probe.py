"""How fast a link is, found out by sending a little over it that the other end throws away.

Used by `transfer.page_channel` before the first dump, when nothing else says how fast the link is. The workload still
runs then. A fast link costs milliseconds, a slow one less than a tenth of a second and a few hundred KiB.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

from phaul.transfer.page_stream import LARGEST_PROBE_BYTES, PROBE_ARRIVED, PROBE_HEADER, Opening
from phaul.transfer.tcp_info import tcp_info
from phaul.transfer.wire import Wire
from phaul.units import KIB, MIB

ENOUGH_BYTES = 4 * MIB
ENOUGH_SECONDS = 0.05
SMALLEST_PROBE_BYTES = 64 * KIB  # half a second of the slowest link that anybody migrates over
QUICK_SECONDS = 0.001  # a probe that was gone in this time is followed by one of twice the size
UNSENT_BYTES = 32 * KIB  # so that the probes leave as they are sent, and not into a buffer of megabytes
UNSENT_DEFAULT = 0  # what /proc/sys/net/ipv4/tcp_notsent_lowat says
STEADY = 1.5  # between the best and the worst window of a link that is the narrowest place

Mark = tuple[float, int]  # seconds, bytes that had arrived by then


async def probe_link(wire: Wire) -> float:
    """Give the bytes a second that a page channel carries when nothing else does. Leaves it as it was.

    The connection must be between two dumps, and not blocking. Raises OSError when it breaks.
    """
    connection = wire.socket
    content = os.urandom(SMALLEST_PROBE_BYTES) * (LARGEST_PROBE_BYTES // SMALLEST_PROBE_BYTES)
    size, sent, probes = SMALLEST_PROBE_BYTES, 0, 0
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    began = before = time.monotonic()
    marks = [(began, tcp_info(connection).acked_bytes)]
    while sent < ENOUGH_BYTES and before - began < ENOUGH_SECONDS:
        header = Opening.PROBE.value + PROBE_HEADER.pack(size)
        await wire.send(header + memoryview(content)[:size])
        sent, probes, now = sent + size, probes + 1, time.monotonic()
        marks.append((now, tcp_info(connection).acked_bytes))
        if now - before < QUICK_SECONDS:
            size = min(2 * size, LARGEST_PROBE_BYTES)
        before = now
    while probes:
        answers = await wire.recv(probes)
        if answers != PROBE_ARRIVED * len(answers) or not answers:
            raise ConnectionError("the destination does not answer a probe")
        probes -= len(answers)
    marks.append((time.monotonic(), tcp_info(connection).acked_bytes))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_DEFAULT)
    return rate_of(marks, tcp_info(connection).delivery_bytes_per_second)


def rate_of(marks: Sequence[Mark], kernel: float = 0) -> float:
    """Give the bytes a second of the best of three windows, each a quarter of what arrived or more.

    The first quarter does not count: a connection has to find its pace, and a link that is limited by a token bucket
    lets a burst through. The best, because a machine that is busy for a moment makes a link look slow, never fast.
    A link that is the narrowest place carries every window alike. Where they differ it is the machine that is busy, and
    the kernel's own opinion, which is of a single round trip, is asked as well: the faster one counts.
    """
    (_, first), (end, last) = marks[0], marks[-1]
    quarter = (last - first) / 4
    rates = []
    for number in (1, 2, 3):
        began = next(mark for mark in marks if mark[1] >= first + number * quarter)
        over = next((mark for mark in marks if mark[1] >= began[1] + quarter), (end, last))
        if over[0] > began[0] and over[1] > began[1]:  # all the rest may have come between two marks
            rates.append((over[1] - began[1]) / (over[0] - began[0]))
    whole = (last - first) / max(end - marks[0][0], 1e-6)
    best = max(rates, default=whole)
    steady = bool(rates) and best <= STEADY * min(rates)
    return best if steady else max(best, kernel)
