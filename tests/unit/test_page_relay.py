"""Compressed dumps, from CRIU's socket to the receiver's buffer: every byte, at once, and an end that all see."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phaul.errors import TransferError
from phaul.transfer.compression import FRAME_BYTES, FRAME_HEADER, Compressor
from phaul.transfer.page_relay import PageRelay, loopback_pair
from phaul.transfer.page_stream import LARGEST_PROBE_BYTES, PROBE_ARRIVED, PROBE_HEADER, Opening, PageStream
from phaul.transfer.tcp_info import tcp_info
from phaul.transfer.wire import Wire
from tests.unit.test_criu_session import open_descriptors

PROMPT_SECONDS = 1.0
PIECES = st.lists(
    st.builds(
        lambda seed, noise, zeros: random.Random(seed).randbytes(noise) + bytes(zeros),
        st.integers(0, 999),
        st.integers(0, 3000),
        st.integers(0, 3000),
    ),
    max_size=8,
)


@contextlib.contextmanager
def wire() -> Iterator[tuple[socket.socket, PageStream]]:
    """A connection, and a stream at its other end."""
    ours, theirs = loopback_pair()
    stream = PageStream(Wire(theirs))
    for end in (ours, theirs):
        end.settimeout(10)
    with ours:
        try:
            yield ours, stream
        finally:
            stream.close()


@contextlib.contextmanager
def relayed() -> Iterator[tuple[PageRelay, socket.socket, socket.socket, PageStream]]:
    """A relay in between, with the socket that CRIU would write into."""
    with wire() as (ours, stream):
        ours.setblocking(True)
        ours.sendall(Opening.ZSTD.value)
        relay = PageRelay(Wire(ours), compress=True)
        with socket.socket(fileno=os.dup(relay.fileno())) as criu:
            criu.settimeout(10)
            try:
                yield relay, criu, ours, stream
            finally:
                with contextlib.suppress(OSError):
                    ours.shutdown(socket.SHUT_RDWR)
                relay.end()


def receive(stream: PageStream, count: int, at_once: int = 1 << 20) -> bytes:
    found = bytearray()
    buffer = memoryview(bytearray(at_once))
    while len(found) < count:
        received = stream.recv_into(buffer)
        assert received, f"the stream ended after {len(found)} bytes"
        found += buffer[:received]
    return bytes(found)


@settings(max_examples=60, deadline=None)
@given(PIECES, st.integers(1, 5000))
def test_every_byte_arrives_whatever_the_pieces(pieces: list[bytes], at_once: int) -> None:
    content = b"".join(pieces)
    with relayed() as (relay, criu, _, stream):
        for piece in pieces:
            criu.sendall(piece)
        assert receive(stream, len(content), at_once)[: len(content)] == content
        assert relay.sent_bytes == len(content)


def test_megabytes_arrive_and_take_less_of_the_wire() -> None:
    content = os.urandom(3 << 20) + bytes(20 << 20) + b"text " * 100_000
    with relayed() as (_, criu, ours, stream):
        sending = threading.Thread(target=criu.sendall, args=(content,))
        sending.start()
        assert receive(stream, len(content)) == content
        sending.join()
        assert 3 << 20 < tcp_info(ours).acked_bytes < 4 << 20


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=20))
def test_nothing_is_held_back_while_criu_waits_for_an_answer(questions: list[bytes]) -> None:
    with relayed() as (_, criu, _, stream):
        for question in questions:
            criu.sendall(question)
            assert receive(stream, len(question)) == question
            stream.sendall(question[:4])
            assert criu.recv(4) == question[:4]


def test_dumps_of_all_kinds_follow_each_other_on_one_connection() -> None:
    with wire() as (ours, stream):
        for number in range(3):
            ours.setblocking(True)
            ours.sendall(Opening.PROBE.value + PROBE_HEADER.pack(5) + b"probe" + Opening.RAW.value + b"raw")
            assert receive(stream, 3) == b"raw"
            assert ours.recv(1) == PROBE_ARRIVED
            stream.end_dump()
            ours.sendall(Opening.ZSTD.value)
            relay = PageRelay(Wire(ours), compress=True)
            content = bytes([number]) * 100_000
            os.write(relay.fileno(), content)
            assert receive(stream, len(content)) == content
            stream.sendall(b"done")
            with socket.socket(fileno=os.dup(relay.fileno())) as criu:
                assert criu.recv(4) == b"done"
            stream.end_dump()
            relay.end()
            relay.end()
        ours.shutdown(socket.SHUT_WR)
        assert stream.recv_into(memoryview(bytearray(10))) == 0


def test_breaking_criu_s_socket_breaks_the_wire_at_once() -> None:
    """What `criu.gates` does to cancel a dump."""
    with relayed() as (_, criu, _, stream):
        criu.sendall(b"x")
        receive(stream, 1)
        began = time.monotonic()
        criu.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            assert stream.recv_into(memoryview(bytearray(10))) == 0
        assert time.monotonic() - began < PROMPT_SECONDS


@pytest.mark.parametrize("busy", [False, True])
def test_breaking_the_wire_breaks_criu_s_socket_at_once(busy: bool) -> None:
    with relayed() as (_, criu, ours, stream):
        criu.sendall(b"x")
        receive(stream, 1)
        if busy:  # nobody reads: the relay stands in the middle of a write
            criu.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                while True:
                    criu.sendall(os.urandom(1 << 20))
            criu.settimeout(10)
        began = time.monotonic()
        ours.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            while criu.recv(100):
                pass
        with pytest.raises(OSError, match=r"pipe|reset"):
            for _ in range(1000):
                criu.sendall(bytes(1 << 20))
        assert time.monotonic() - began < PROMPT_SECONDS


def test_cancelling_does_not_wait_for_a_wire_that_takes_nothing() -> None:
    with relayed() as (_, criu, _, _):
        criu.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:
                criu.sendall(os.urandom(1 << 20))
        began = time.monotonic()
        with socket.socket(fileno=os.dup(criu.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError, match="pipe"):
            criu.sendall(b"x")
        assert time.monotonic() - began < PROMPT_SECONDS


def test_the_destination_that_goes_is_seen_by_criu() -> None:
    with relayed() as (_, criu, _, stream):
        criu.sendall(b"x")
        receive(stream, 1)
        stream.close()
        assert criu.recv(1) == b""


def test_nothing_is_left_open() -> None:
    before, threads = open_descriptors(), threading.active_count()
    with relayed() as (_, criu, _, _):
        criu.sendall(b"x")
    assert open_descriptors() == before
    assert threading.active_count() == threads


def test_somebody_else_s_connection_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    strangers: list[socket.socket] = []
    connect = socket.create_connection

    def second(address: tuple[str, int]) -> socket.socket:
        strangers.append(connect(address))
        return connect(address)

    monkeypatch.setattr("phaul.transfer.page_relay.socket.create_connection", second)
    with pytest.MonkeyPatch.context() as patch:
        serve = socket.create_server
        many = "phaul.transfer.page_relay.socket.create_server"
        patch.setattr(many, lambda address, backlog: serve(address, backlog=5))
        one, other = loopback_pair()
    with one, other, strangers[0]:
        one.sendall(b"ours")
        assert other.recv(10) == b"ours"


@pytest.mark.parametrize(
    "rubbish",
    [
        b"?",
        b"\4\0\0\0",
        Opening.PROBE.value + PROBE_HEADER.pack(LARGEST_PROBE_BYTES + 1),
        Opening.ZSTD.value + FRAME_HEADER.pack(0, 0),
        Opening.ZSTD.value + FRAME_HEADER.pack(FRAME_BYTES + 1, 5),
        Opening.ZSTD.value + FRAME_HEADER.pack(100, 5) + b"rubbish",
    ],
)
def test_rubbish_is_an_error(rubbish: bytes) -> None:
    with wire() as (ours, stream):
        ours.sendall(rubbish)
        with pytest.raises(TransferError):
            stream.recv_into(memoryview(bytearray(100)))


@given(st.data())
def test_an_end_in_the_middle_is_an_end(data: st.DataObject) -> None:
    whole = Opening.ZSTD.value + Compressor().frame(memoryview(b"a page" * 50))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with wire() as (ours, stream):
        ours.sendall(whole[:cut])
        ours.shutdown(socket.SHUT_WR)
        assert stream.recv_into(memoryview(bytearray(1000))) == 0
