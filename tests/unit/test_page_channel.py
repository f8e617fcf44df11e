"""Both ends of the page channel: who has the token gets in, once; whoever has not changes nothing."""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from phaul.agent import page_listener
from phaul.agent.page_listener import ExpectedPages, PageListener
from phaul.criu.images import encode_pagemap
from phaul.errors import TransferError, UnreachableError
from phaul.migration.facts import Compression
from phaul.transfer import page_channel
from phaul.transfer.page_channel import TOKEN_BYTES, TcpPageChannel, open_page_channel
from phaul.transfer.page_protocol import PageFlag, task_image
from phaul.transfer.page_stream import Opening
from tests.unit.page_sender import PAGE_BYTES, Dump, Run
from tests.unit.test_criu_session import open_descriptors
from tests.unit.test_page_receiver import OPENING, check_received

HOST = "127.0.0.1"
DUMP = Dump((task_image(7), Run(task_image(7), 0, 3, int(PageFlag.PRESENT), os.urandom(3 * PAGE_BYTES))))
ROOM_BYTES = 1 << 20
SOON_SECONDS = 10.0


@pytest.fixture
async def listener() -> AsyncIterator[PageListener]:
    listening = PageListener(PAGE_BYTES, encode_pagemap)
    await listening.start(HOST, 0)
    yield listening
    await listening.close()


async def send(channel: TcpPageChannel, data: bytes) -> None:
    """Begin a dump as it is, and write as CRIU does: into the bare descriptor, blocking."""
    await begin(channel)

    def write() -> None:
        with socket.socket(fileno=os.dup(channel.fileno())) as copy:
            copy.sendall(data)

    await asyncio.to_thread(write)


async def begin(channel: TcpPageChannel, compress: Compression = Compression.NONE, bandwidth: int = 0) -> bool:
    """Begin a dump of memory that compresses well."""

    async def sample() -> list[bytes]:
        return [b"a sample of the memory" * 10_000]

    return await channel.begin_dump(
        bandwidth_bytes_per_second=bandwidth, compress=compress, device="lo", frozen=True, sample=sample
    )


async def received(expected: ExpectedPages) -> int:
    async with asyncio.timeout(10):
        return (await expected.received).page_bytes


async def test_who_shows_the_token_gets_in(listener: PageListener, tmp_path: Path) -> None:
    expected = listener.expect(tmp_path, ROOM_BYTES)
    assert len(expected.token) == TOKEN_BYTES
    channel = await open_page_channel(HOST, listener.port, expected.token)
    assert os.get_blocking(channel.fileno()), "CRIU knows no EAGAIN"
    assert not os.get_inheritable(channel.fileno())
    await send(channel, DUMP.stream())
    assert await received(expected) == 3 * PAGE_BYTES
    check_received(tmp_path, DUMP)
    assert channel.delivered_bytes() >= TOKEN_BYTES + len(DUMP.stream())
    delivered = channel.delivered_bytes()
    channel.close()
    channel.close()
    assert channel.delivered_bytes() == delivered, "it is reported when all is over"


async def test_channels_do_not_meet(listener: PageListener, tmp_path: Path) -> None:
    directories = [tmp_path / str(number) for number in range(3)]
    for directory in directories:
        directory.mkdir()
    expected = [listener.expect(directory, ROOM_BYTES) for directory in directories]
    channels = [await open_page_channel(HOST, listener.port, each.token) for each in reversed(expected)]
    for number, channel in enumerate(reversed(channels)):
        image = task_image(100 + number)
        await send(channel, Dump((image, Run(image, 0, 1, 4, bytes([number]) * PAGE_BYTES))).stream())
    for number, each in enumerate(expected):
        assert await received(each) == PAGE_BYTES
        assert (directories[number] / "pages-1.img").read_bytes() == bytes([number]) * PAGE_BYTES
        assert (directories[number] / f"pagemap-{100 + number}.img").exists()
    for channel in channels:
        channel.close()


async def test_a_wrong_token_opens_nothing(listener: PageListener, tmp_path: Path) -> None:
    expected = listener.expect(tmp_path, ROOM_BYTES)
    before = open_descriptors()
    for token in (b"x" * TOKEN_BYTES, b"\0" * TOKEN_BYTES, expected.token[:-1] + b"\0"):
        with pytest.raises(UnreachableError, match="refused the page channel"):
            await open_page_channel(HOST, listener.port, token)
    assert not expected.received.done()
    channel = await open_page_channel(HOST, listener.port, expected.token)
    channel.close()
    with pytest.raises(TransferError):
        await received(expected)
    await asyncio.sleep(0.05)
    assert open_descriptors() == before


async def test_a_token_opens_once(listener: PageListener, tmp_path: Path) -> None:
    expected = listener.expect(tmp_path, ROOM_BYTES)
    token = expected.token
    channel = await open_page_channel(HOST, listener.port, token)
    for again in (token, b""):  # an empty token is what one that was used looks like
        with pytest.raises((UnreachableError, TimeoutError)):
            async with asyncio.timeout(0.3):
                await open_page_channel(HOST, listener.port, again)
    await send(channel, DUMP.stream())
    assert await received(expected) == 3 * PAGE_BYTES
    with pytest.raises(UnreachableError):
        await open_page_channel(HOST, listener.port, token)
    channel.close()


async def test_who_is_slow_is_put_out_and_keeps_nobody_waiting(
    listener: PageListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_listener, "TOKEN_TIMEOUT_SECONDS", 0.5)
    expected = listener.expect(tmp_path, ROOM_BYTES)
    reader, writer = await asyncio.open_connection(HOST, listener.port)
    writer.write(expected.token[:5])
    async with asyncio.timeout(0.4):
        channel = await open_page_channel(HOST, listener.port, expected.token)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    await send(channel, DUMP.stream())
    assert await received(expected) == 3 * PAGE_BYTES
    channel.close()


async def test_a_token_may_come_in_pieces_and_pages_right_behind(listener: PageListener, tmp_path: Path) -> None:
    expected = listener.expect(tmp_path, ROOM_BYTES)
    reader, writer = await asyncio.open_connection(HOST, listener.port)
    for byte in expected.token[:-1]:
        writer.write(bytes([byte]))
        await writer.drain()
    writer.write(expected.token[-1:] + Opening.RAW.value + DUMP.stream())
    assert await received(expected) == 3 * PAGE_BYTES
    check_received(tmp_path, DUMP)
    answer = page_channel.ACCEPTED + DUMP.answer
    assert await reader.readexactly(len(answer)) == answer
    writer.close()


async def test_a_channel_can_be_aborted_before_it_comes(listener: PageListener, tmp_path: Path) -> None:
    expected = listener.expect(tmp_path, ROOM_BYTES)
    expected.cancel()
    expected.cancel()
    with pytest.raises(TransferError, match="aborted"):
        await received(expected)
    with pytest.raises(UnreachableError):
        await open_page_channel(HOST, listener.port, expected.token)


async def test_a_channel_can_be_aborted_while_it_receives(listener: PageListener, tmp_path: Path) -> None:
    expected = listener.expect(tmp_path, ROOM_BYTES)
    channel = await open_page_channel(HOST, listener.port, expected.token)
    await send(channel, OPENING)
    while not (tmp_path / "pages-1.img").exists():
        await asyncio.sleep(0.005)
    expected.cancel()
    with pytest.raises(TransferError):
        await received(expected)
    channel.close()


async def test_a_channel_that_is_aborted_as_it_comes_receives_nothing(
    listener: PageListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = listener.expect(tmp_path, ROOM_BYTES)
    compare = hmac.compare_digest

    def abort_meanwhile(one: bytes, other: bytes) -> bool:
        expected.cancel()
        return compare(one, other)

    monkeypatch.setattr("phaul.agent.page_listener.hmac.compare_digest", abort_meanwhile)
    channel = await open_page_channel(HOST, listener.port, expected.token)
    with pytest.raises(TransferError, match="aborted"):
        await received(expected)
    with socket.socket(fileno=os.dup(channel.fileno())) as copy:
        copy.settimeout(5)
        assert await asyncio.to_thread(copy.recv, 1) == b"", "the channel is closed"
    channel.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_broken_channel_is_an_error_for_who_waits(listener: PageListener, tmp_path: Path) -> None:
    expected = listener.expect(tmp_path, ROOM_BYTES)
    channel = await open_page_channel(HOST, listener.port, expected.token)
    await send(channel, DUMP.stream()[:-40])
    channel.close()
    with pytest.raises(TransferError, match="closed"):
        await received(expected)


async def test_closing_breaks_every_channel_and_leaves_nothing(tmp_path: Path) -> None:
    before = open_descriptors()
    listening = PageListener(PAGE_BYTES, encode_pagemap)
    await listening.start(HOST, 0)
    directory = tmp_path / "1"
    directory.mkdir()
    under_way, waited_for = listening.expect(directory, ROOM_BYTES), listening.expect(tmp_path, ROOM_BYTES)
    channel = await open_page_channel(HOST, listening.port, under_way.token)
    await send(channel, OPENING)
    while not (directory / "pages-1.img").exists():
        await asyncio.sleep(0.005)
    port = listening.port
    await listening.close()
    for expected in (under_way, waited_for):
        with pytest.raises(TransferError):
            await received(expected)
    channel.close()
    with pytest.raises(UnreachableError):
        await open_page_channel(HOST, port, waited_for.token)
    async with asyncio.timeout(SOON_SECONDS):
        while open_descriptors() != before:  # the receiving thread closes its own
            await asyncio.sleep(0.005)


async def test_a_connection_that_cannot_be_taken_does_not_end_the_listening(
    listener: PageListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors for a moment, say."""
    expected = listener.expect(tmp_path, ROOM_BYTES)
    loop = asyncio.get_running_loop()
    accept = loop.sock_accept
    failures = [OSError(24, "Too many open files")] * 2

    async def fail_first(listening: socket.socket) -> Any:
        accepted = await accept(listening)
        if failures:
            accepted[0].close()
            raise failures.pop()
        return accepted

    monkeypatch.setattr(loop, "sock_accept", fail_first)
    with pytest.raises(UnreachableError):  # this one was taken before the failure could be arranged
        await open_page_channel(HOST, listener.port, b"x" * TOKEN_BYTES)
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await open_page_channel(HOST, listener.port, expected.token)
    channel = await open_page_channel(HOST, listener.port, expected.token)
    await send(channel, DUMP.stream())
    assert await received(expected) == 3 * PAGE_BYTES
    channel.close()


async def test_nobody_there_is_unreachable_and_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(page_channel, "CONNECT_TIMEOUT_SECONDS", 0.2)
        with pytest.raises(UnreachableError, match="no answer") as silent:
            await open_page_channel(HOST, port, b"x" * TOKEN_BYTES)
    assert "firewalls" in silent.value.hint
    with pytest.raises(UnreachableError, match=f"{HOST}:{port}"):
        await open_page_channel(HOST, port, b"x" * TOKEN_BYTES)
    assert open_descriptors() == before
