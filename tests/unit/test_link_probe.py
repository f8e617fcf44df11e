"""How fast a link is, from what is seen to arrive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.transfer.link_probe import ENOUGH_BYTES, probe_link, rate_of
from phaul.transfer.page_relay import loopback_pair
from phaul.transfer.page_stream import LARGEST_PROBE_BYTES, Opening, PageStream
from phaul.transfer.tcp_info import tcp_info
from phaul.transfer.wire import Wire
from phaul.units import MIB

STEPS = st.lists(st.tuples(st.floats(1e-5, 0.1), st.integers(1, MIB)), min_size=1, max_size=20)


@given(st.floats(1e5, 1e10), st.lists(st.integers(MIB // 16, MIB), min_size=1, max_size=20))
def test_a_steady_link_is_as_fast_as_it_is(rate: float, pieces: list[int]) -> None:
    arrived = list(accumulate(pieces, initial=1000))
    marks = [(100 + (each - 1000) / rate, each) for each in arrived]
    assert rate_of(marks) == pytest.approx(rate, rel=0.01)


def test_the_burst_of_a_token_bucket_does_not_count() -> None:
    """1 MiB at once, then 125 MB/s."""
    pieces = list(range(0, 8 * MIB + 1, MIB // 4))
    marks = [(max(each - MIB, 0) / 125e6 + each / 1e10, each) for each in pieces]
    assert rate_of(marks) == pytest.approx(125e6, rel=0.1)


@given(st.integers(5, 7))
def test_a_moment_in_which_the_machine_was_busy_does_not_count(at: int) -> None:
    marks = [(number * MIB / 2e9 + (0.02 if number > at else 0), number * MIB) for number in range(9)]
    assert rate_of(marks) == pytest.approx(2e9, rel=0.01)


@given(STEPS)
def test_it_lies_between_the_slowest_step_and_the_fastest(steps: list[tuple[float, int]]) -> None:
    times = accumulate((step[0] for step in steps), initial=5.0)
    marks = list(zip(times, accumulate((step[1] for step in steps), initial=0), strict=True))
    rates = [(b - a) / (after - before) for (before, a), (after, b) in pairwise(marks)]
    assert min(rates) * 0.999 <= rate_of(marks) <= max(rates) * 1.001


def test_the_kernel_is_asked_where_the_machine_was_busy() -> None:
    busy = [(number * MIB / 4e8 + (0.02 if number > 6 else 0), number * MIB) for number in range(9)]
    assert rate_of(busy, 2e9) == 2e9
    assert rate_of(busy, 1e6) == pytest.approx(4e8, rel=0.01)


def test_the_kernel_is_not_asked_where_the_link_is_steady() -> None:
    """What it says of a single round trip was seen to be three times a link's speed."""
    marks = [(number * MIB / 125e6, number * MIB) for number in range(9)]
    assert rate_of(marks, 2e9) == pytest.approx(125e6, rel=0.01)


def test_what_came_all_at_once_is_not_taken_for_nothing() -> None:
    assert rate_of([(0.0, 0), (0.1, 0), (0.3, 4 * MIB), (0.5, 4 * MIB)]) == pytest.approx(8 * MIB)


def test_nothing_arrived() -> None:
    assert rate_of([(1.0, 5), (2.0, 5)]) == 0


@pytest.mark.parametrize("broken", [False, True])
async def test_a_probe_is_thrown_away_and_the_channel_is_as_before(broken: bool) -> None:
    ours, theirs = loopback_pair()
    stream = PageStream(Wire(theirs))
    found = bytearray(10)

    def read() -> None:
        with contextlib.suppress(OSError):
            stream.recv_into(memoryview(found))

    reading = threading.Thread(target=read)
    with ours, contextlib.closing(stream):
        ours.setblocking(False)
        before = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        if broken:
            asyncio.get_running_loop().call_later(0.01, theirs.shutdown, socket.SHUT_RDWR)
            with pytest.raises(OSError, match=r"probe|reset|pipe"):
                await probe_link(Wire(ours))
            return
        reading.start()
        rate = await probe_link(Wire(ours))
        assert rate > MIB
        assert tcp_info(ours).acked_bytes < 2 * (ENOUGH_BYTES + LARGEST_PROBE_BYTES)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == before
        os.write(ours.fileno(), Opening.RAW.value + b"a dump")
        reading.join(10)
        assert found.startswith(b"a dump")
