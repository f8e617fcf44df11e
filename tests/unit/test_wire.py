"""A sealed wire: what is sent arrives, and what was changed, left out, repeated or moved does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import TransferError
from phaul.transfer.wire import (
    RECORD_BYTES,
    RECORD_HEADER,
    TAG_BYTES,
    SealedWire,
    Side,
    Wire,
    channel_name,
)

TOKEN = bytes(range(32))
PATTERN = b"a page of memory that nobody else may see "


@contextlib.contextmanager
def pair(token: bytes = TOKEN, other: bytes = TOKEN) -> Iterator[tuple[SealedWire, SealedWire]]:
    ours, theirs = socket.socketpair()
    with SealedWire(ours, token, Side.SOURCE) as source, SealedWire(theirs, other, Side.DESTINATION) as destination:
        yield source, destination


def read(wire: Wire, most: int = 1 << 20) -> bytes:
    """Everything until the end."""
    found, buffer = b"", memoryview(bytearray(most))
    while count := wire.recv_into(buffer):
        found += buffer[:count]
    return found


def sealed(*contents: bytes) -> list[bytes]:
    """What goes over the socket for each."""
    with pair() as (source, destination):
        records = []
        for content in contents:
            source.sendall(content)
            records.append(destination.socket.recv(1 << 20))
        return records


def opened(*records: bytes) -> bytes:
    """What a destination makes of them."""
    with pair() as (source, destination):
        source.socket.sendall(b"".join(records))
        source.socket.shutdown(socket.SHUT_WR)
        return read(destination)


@given(st.lists(st.binary(min_size=1, max_size=2000), max_size=8), st.integers(1, 3000))
def test_what_is_sent_arrives_however_it_is_read(contents: list[bytes], most: int) -> None:
    with pair() as (source, destination):
        for content in contents:
            source.sendall(content)
        source.socket.shutdown(socket.SHUT_WR)
        assert read(destination, most) == b"".join(contents)


def test_more_than_a_record_in_both_directions() -> None:
    content = os.urandom(3 * RECORD_BYTES + 17)
    with pair() as (source, destination):

        def answer() -> None:
            destination.sendall(read(destination))
            destination.socket.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=answer)
        thread.start()
        source.sendall(content)
        source.socket.shutdown(socket.SHUT_WR)
        assert read(source) == content
        thread.join()


def test_it_does_not_stand_on_the_wire() -> None:
    (record,) = sealed(PATTERN * 100)
    assert PATTERN not in record
    assert TOKEN not in channel_name(TOKEN) + record
    assert len(record) == RECORD_HEADER.size + len(PATTERN) * 100 + TAG_BYTES
    assert sealed(b"x" * 64, b"x" * 64)[0] != sealed(b"x" * 64, b"x" * 64)[1]


@given(st.data())
def test_a_bit_that_was_flipped_is_found(data: st.DataObject) -> None:
    (record,) = sealed(PATTERN)
    at = data.draw(st.integers(RECORD_HEADER.size, len(record) - 1))
    changed = bytearray(record)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(TransferError, match="changed on its way"):
        opened(bytes(changed))


@given(st.integers(0, 2**32 - 1))
def test_a_length_that_was_changed_never_gives_content(length: int) -> None:
    (record,) = sealed(PATTERN)
    if RECORD_HEADER.pack(length) == record[: RECORD_HEADER.size]:
        return
    try:
        assert opened(RECORD_HEADER.pack(length) + record[RECORD_HEADER.size :]) == b""  # the end, before its end
    except TransferError:
        pass


@given(st.permutations(range(4)), st.integers(1, 4))
def test_only_the_records_in_their_order(order: list[int], count: int) -> None:
    contents = [bytes([number]) * 10 for number in range(4)]
    records = sealed(*contents)
    sent = [records[number] for number in order][:count]
    if order[:count] == list(range(count)):
        assert opened(*sent) == b"".join(contents[:count])
    else:
        with pytest.raises(TransferError):
            opened(*sent)


def test_a_record_twice_is_refused() -> None:
    (record,) = sealed(PATTERN)
    with pytest.raises(TransferError):
        opened(record, record)


def test_a_record_sent_back_to_its_sender_is_refused() -> None:
    (record,) = sealed(PATTERN)
    with pair() as (source, destination):
        destination.socket.sendall(record)
        with pytest.raises(TransferError):
            source.recv_into(memoryview(bytearray(100)))


def test_another_token_opens_nothing() -> None:
    with pair(other=bytes(32)) as (source, destination):
        source.sendall(PATTERN)
        with pytest.raises(TransferError):
            destination.recv_into(memoryview(bytearray(100)))


def test_a_copy_goes_on_with_the_numbers() -> None:
    with pair() as (source, destination):
        source.sendall(b"one")
        with source.dup() as copy:
            copy.sendall(b"two")
        source.sendall(b"three")
        source.socket.shutdown(socket.SHUT_WR)
        assert read(destination) == b"onetwothree"


async def test_beside_other_work() -> None:
    with pair() as (source, destination):
        for each in (source, destination):
            each.socket.setblocking(False)
        content = os.urandom(2 * RECORD_BYTES + 1)
        sending = asyncio.create_task(source.send(content))
        found = b""
        while len(found) < len(content):
            found += await destination.recv(100_000)
        await sending
        assert found == content
        source.socket.shutdown(socket.SHUT_WR)
        assert await destination.recv(1) == b""
