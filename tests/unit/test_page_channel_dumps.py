"""Dumps over one page channel: as they are or compressed, as asked for or as the link and the memory suggest."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from phaul.agent.page_listener import ExpectedPages, PageListener
from phaul.criu.images import encode_pagemap
from phaul.errors import TransferError
from phaul.migration.facts import Compression
from phaul.transfer import page_channel
from phaul.transfer.page_channel import TcpPageChannel, open_page_channel
from phaul.transfer.page_protocol import PageFlag, task_image
from phaul.units import KIB, MIB
from tests.unit.page_sender import PAGE_BYTES, Dump, Run
from tests.unit.test_criu_session import open_descriptors
from tests.unit.test_page_channel import HOST
from tests.unit.test_page_receiver import check_received

PAGES = 4000
IMAGE = task_image(7)
ZEROS = b"\0" * PAGE_BYTES * PAGES
NOISE = os.urandom(PAGE_BYTES * PAGES)
ROOM_BYTES = 64 * MIB
PROMPT_SECONDS = 1.0
FAST, SLOW = 10_000 * MIB, 100 * MIB


class Source:
    """The source's end, with what the coordinator would tell it."""

    def __init__(self, channel: TcpPageChannel) -> None:
        self.channel = channel
        self.samples = 0

    async def begin(self, compress: Compression, memory: bytes = ZEROS, bandwidth: int = 0) -> bool:
        async def sample() -> list[bytes]:
            self.samples += 1
            return [memory]

        return await self.channel.begin_dump(
            bandwidth_bytes_per_second=bandwidth, compress=compress, device="lo", frozen=True, sample=sample
        )

    async def send(self, dump: Dump) -> None:
        """Do what CRIU does, up to the status."""

        def write() -> None:
            with socket.socket(fileno=os.dup(self.channel.fileno())) as criu:
                criu.settimeout(20)
                criu.sendall(dump.stream())
                answers = b""
                while len(answers) < len(dump.answer):
                    answers += criu.recv(100)

        await asyncio.to_thread(write)


Ends = tuple[Source, ExpectedPages]


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    before = open_descriptors()
    listener = PageListener(PAGE_BYTES, encode_pagemap)
    await listener.start(HOST, 0)
    expected = listener.expect(tmp_path, ROOM_BYTES)
    channel = await open_page_channel(HOST, listener.port, expected.token)
    yield Source(channel), expected
    channel.close()
    await listener.close()
    for _ in range(100):  # the receiver's thread closes its own
        if open_descriptors() == before:
            return
        await asyncio.sleep(0.02)
    assert open_descriptors() == before


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What probes find, one after the other; empty: no probe is expected."""
    rates: list[float] = []

    async def probe(connection: socket.socket) -> float:
        return rates.pop(0)

    monkeypatch.setattr(page_channel, "probe_link", probe)
    return rates


def dump_of(memory: bytes, address: int = 0) -> Dump:
    return Dump((IMAGE, Run(IMAGE, address, len(memory) // PAGE_BYTES, int(PageFlag.PRESENT), memory)))


@pytest.mark.parametrize("compress", [Compression.ZSTD, Compression.NONE])
@pytest.mark.parametrize("memory", [ZEROS, NOISE], ids=["zeros", "noise"])
async def test_what_was_asked_for_is_done_and_every_page_arrives(
    ends: Ends, tmp_path: Path, compress: Compression, memory: bytes
) -> None:
    source, expected = ends
    dump = dump_of(memory)
    assert await source.begin(compress) is (compress is Compression.ZSTD)
    assert os.get_blocking(source.channel.fileno()), "CRIU knows no EAGAIN"
    await source.send(dump)
    async with asyncio.timeout(10):
        assert (await expected.received).page_bytes == len(memory)
    check_received(tmp_path, dump)
    assert source.samples == 0
    assert 0 <= source.channel.sent_bytes() - len(dump.stream()) <= 1
    wire_bytes = source.channel.delivered_bytes()
    if compress is Compression.ZSTD and memory is ZEROS:
        assert wire_bytes < len(memory) // 100
    else:
        assert len(memory) < wire_bytes < len(memory) + 64 * KIB


async def test_rounds_go_each_as_they_should_over_one_connection(ends: Ends, link: list[float]) -> None:
    source, expected = ends
    link.append(SLOW)
    sent = 0
    for number, (compress, memory, compressed) in enumerate(
        [
            (Compression.AUTO, ZEROS, True),
            (Compression.NONE, ZEROS, False),
            (Compression.ZSTD, NOISE, True),
            (Compression.AUTO, NOISE, False),
        ]
    ):
        assert await source.begin(compress, memory) is compressed, number
        dump = dump_of(memory)
        await source.send(dump)
        sent += len(dump.stream())
        assert sent <= source.channel.sent_bytes() <= sent + number + 1
    async with asyncio.timeout(10):
        await expected.received
    assert not link


@pytest.mark.parametrize(
    ("found", "memory", "bandwidth", "compressed"),
    [
        ([FAST], ZEROS, 0, False),
        ([SLOW], ZEROS, 0, True),
        ([SLOW], NOISE, 0, False),
        ([], ZEROS, 25_000_000, True),  # a cap is a slow link; nothing need be probed
        ([], NOISE, 25_000_000, False),
        ([FAST], ZEROS, 10**10, False),
    ],
)
async def test_auto_goes_by_the_link_and_by_the_memory(
    ends: Ends,
    link: list[float],
    found: list[float],
    memory: bytes,
    bandwidth: int,
    compressed: bool,
) -> None:
    link += found
    source, _ = ends
    assert await source.begin(Compression.AUTO, memory, bandwidth) is compressed
    assert not link
    assert source.samples == (found != [FAST]), "a fast link needs no sample"


async def test_auto_learns_from_the_round_before(
    ends: Ends, link: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = ends
    link.append(FAST)
    assert await source.begin(Compression.AUTO) is False
    monkeypatch.setattr(page_channel, "ENOUGH_BYTES", 1 * MIB)
    source.channel.pace(10_000_000)  # the link gets slower, and nobody says so
    await source.send(dump_of(NOISE))
    assert await source.begin(Compression.AUTO) is True


async def test_auto_without_a_sample_does_not_compress(ends: Ends, link: list[float]) -> None:
    source, _ = ends
    link.append(SLOW)
    assert await source.begin(Compression.AUTO, b"") is False


async def test_a_real_probe_finds_loopback_fast(ends: Ends) -> None:
    source, expected = ends
    dump = dump_of(ZEROS)
    await source.begin(Compression.AUTO)
    await source.send(dump)
    async with asyncio.timeout(10):
        assert (await expected.received).page_bytes == len(ZEROS)


async def test_a_cap_holds(ends: Ends) -> None:
    """2 MB at 4 MB/s: half a second, less what a pacing kernel lets go at once; without it, milliseconds."""
    source, _ = ends
    await source.begin(Compression.NONE, bandwidth=4_000_000)
    began = time.monotonic()
    await source.send(dump_of(NOISE))
    assert time.monotonic() - began > 0.3


async def test_the_cap_is_lifted_for_the_next_dump_unless_asked_for(ends: Ends) -> None:
    source, _ = ends
    source.channel.pace(1)
    await source.begin(Compression.NONE)
    async with asyncio.timeout(5):
        await source.send(dump_of(NOISE))


@pytest.mark.parametrize("compress", [Compression.ZSTD, Compression.NONE])
async def test_closing_fails_who_writes_at_once(ends: Ends, compress: Compression) -> None:
    source, expected = ends
    await source.begin(compress, bandwidth=1_000_000)
    writing = asyncio.create_task(source.send(dump_of(NOISE * 10)))
    while source.channel.sent_bytes() < 100_000:
        await asyncio.sleep(0.01)
    began = time.monotonic()
    source.channel.close()
    with pytest.raises(OSError, match=r"pipe|reset"):
        await writing
    with pytest.raises(TransferError):
        await expected.received
    assert time.monotonic() - began < PROMPT_SECONDS


@pytest.mark.parametrize("compress", [Compression.ZSTD, Compression.AUTO])
async def test_a_channel_that_broke_cannot_begin_a_dump(ends: Ends, compress: Compression) -> None:
    source, expected = ends
    expected.cancel()
    await asyncio.sleep(0.1)
    with pytest.raises(TransferError, match="page channel"):
        for _ in range(3):
            await source.begin(compress)
