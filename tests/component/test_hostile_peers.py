"""An agent before peers that mean no good: it goes on serving, and needs no more for it than before."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from phaul.agent import peer_service
from phaul.agent.peer_client import GrpcPeer
from phaul.agent.strangers import STRANGERS, Strangers
from phaul.agent.tls_front import AT_A_TIME, CONNECTIONS_A_HOST
from phaul.errors import NotTrustedError, PhaulError, PreflightError, TransferError, UsageError
from phaul.migration.facts import AddressFacts
from phaul.migration.peer import Reservation
from phaul.migration.recovery import Word
from phaul.observe.seldom import Seldom
from phaul.rpc.v1 import peer_pb2
from phaul.transfer.wire import SealedWire, Side, channel_name
from phaul.trust.connections import CALLS, dial
from phaul.trust.tls_stream import TlsStream
from tests.component.conftest import ADDRESS, Pair
from tests.component.hostile_agent import SOON_SECONDS
from tests.component.trusting import LOOPBACK, Trusts, make_trusts, trusting_pair
from tests.component.victim import Victim

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
DESCRIPTORS_MORE = 2 * (STRANGERS + AT_A_TIME) + 100  # for both ports; who has to go, goes at the loop's next turn
MEMORY_MORE_BYTES = 96 * MIB
MANY = 10_000
HELD_OPEN = 400  # of them at a time, by us
GARBAGE = (
    b"\0" * 100, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\xff" * 5000, b"\x80" * 33,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000, os.urandom(20_000), b"", b"\x15\x03\x03\0\2\2\x28",
)  # fmt: skip


@pytest.fixture
def victim(trusts: Trusts) -> Iterator[Victim]:
    base = trusts.base / "b"
    argv = [sys.executable, "-m", "tests.component.hostile_agent", str(base)]
    log = (trusts.base / "log").open("w")
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=log, text=True) as process:
        try:
            assert process.stdout is not None
            ports = next(line for line in process.stdout if line.startswith("["))
            port, page_port = json.loads(ports)
            yield Victim(process, trusts.store("a"), base / "agent.sock", port, page_port)
            assert process.poll() is None
        finally:
            process.kill()
            log.close()


@pytest.fixture
def trusts(tmp_path: Path) -> Trusts:
    return make_trusts(tmp_path)


@pytest.fixture
async def pair(trusts: Trusts) -> AsyncIterator[Pair]:
    async with trusting_pair(trusts) as two:
        yield two


def says(port: int, content: bytes) -> None:
    """Say something, end, and wait for the other end to hang up."""
    with socket.create_connection((LOOPBACK, port), timeout=30) as connection:
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        except ConnectionError:
            pass
        except OSError as error:
            assert error.errno == errno.ENOTCONN, error  # it has hung up already


async def test_garbage_on_both_ports(victim: Victim) -> None:
    await victim.serves()
    before = victim.descriptors()
    for port in (victim.port, victim.page_port):
        for garbage in GARBAGE:
            await asyncio.to_thread(says, port, garbage)
    await victim.serves()
    async with asyncio.timeout(30):
        while victim.descriptors() > before + 4:
            await asyncio.sleep(0.05)


async def test_ten_thousand_connections_keep_nobody_out(victim: Victim) -> None:
    await victim.serves()
    descriptors, memory = victim.descriptors(), victim.memory_bytes()
    held: deque[socket.socket] = deque()
    most = 0

    def flood() -> None:
        nonlocal most
        for number in range(MANY):
            held.append(socket.create_connection((LOOPBACK, (victim.port, victim.page_port)[number % 2]), timeout=30))
            if len(held) > HELD_OPEN:
                held.popleft().close()
            if number % 500 == 0:
                most = max(most, victim.descriptors())

    try:
        await asyncio.to_thread(flood)
        await victim.serves()  # while the last ones are still open
        assert max(most, victim.descriptors()) < descriptors + DESCRIPTORS_MORE
        assert victim.memory_bytes() < memory + MEMORY_MORE_BYTES
    finally:
        for connection in held:
            connection.close()


async def test_who_stalls_or_dribbles_is_let_go(victim: Victim) -> None:
    async def dribbles(port: int, handshake: bool) -> float:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        began = time.monotonic()
        stream = TlsStream(victim.store.current().client, reader, writer, server_side=False)
        if handshake:
            await stream.handshake()
        try:
            async with asyncio.timeout(30):
                while not reader.at_eof():
                    if handshake:
                        await stream.write(b" ")
                    else:
                        writer.write(b"\x16" if port == victim.port else b"x")
                    await asyncio.sleep(SOON_SECONDS / 8)
        except (ConnectionError, OSError):
            pass
        writer.transport.abort()
        return time.monotonic() - began

    ways = [(victim.port, False), (victim.port, True), (victim.page_port, False)]
    took = await asyncio.gather(*(dribbles(*way) for way in ways))
    assert all(SOON_SECONDS / 2 < each < 25 for each in took), took
    await victim.serves()


async def test_a_line_without_an_end_needs_no_memory(victim: Victim) -> None:
    await victim.serves()
    before = victim.memory_bytes()
    reader, writer = await asyncio.open_connection(LOOPBACK, victim.port)
    stream = TlsStream(victim.store.current().client, reader, writer, server_side=False)
    await stream.handshake()
    sent = 0
    with pytest.raises(OSError):  # broken off
        while sent < 256 * MIB:
            await stream.write(b"[" * 65_536)
            sent += 65_536
    assert sent < 64 * MIB
    stream.abort()
    await victim.serves()
    assert victim.memory_bytes() < before + MEMORY_MORE_BYTES


async def test_even_a_trusted_host_has_so_many_connections_and_no_more(pair: Pair, trusts: Trusts) -> None:
    port = pair.destination.server.peer_port
    store = trusts.store("a")
    held = [await dial(store, LOOPBACK, port, CALLS) for _ in range(CONNECTIONS_A_HOST)]
    with pytest.raises(PhaulError):
        await dial(store, LOOPBACK, port, CALLS)
    await held.pop().stream.close()
    async with asyncio.timeout(20):
        while len(pair.destination.server._live) >= CONNECTIONS_A_HOST:
            await asyncio.sleep(0.02)
    connection = await dial(store, LOOPBACK, port, CALLS)
    for each in (*held, connection):
        await each.stream.close()


@pytest.fixture
async def peer(pair: Pair) -> AsyncIterator[GrpcPeer]:
    found = pair.source.server._migrations._connect(pair.destination.target)
    assert isinstance(found, GrpcPeer)
    try:
        yield found
    finally:
        await found.close()


def reservation(migration_id: str = "0badcafe", memory_bytes: int = MIB, **changes: object) -> Reservation:
    facts = {"source_host": "a", "source_port": 1, "source_peer": "", "root_pid": 4711, "command": "c", "addresses": ()}
    switches = {"keep_connections": True, "shell_job": False}
    return Reservation(migration_id, memory_bytes=memory_bytes, **{**facts, **switches, **changes})  # type: ignore[arg-type]


def tree_of(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*") if not path.name.startswith("to-")}


@pytest.mark.parametrize("migration_id", ["../../x", "/tmp/phaul-x", "..", "", "a/b", "0badcafe\0", "A" * 8, "0" * 500])
async def test_an_id_that_leads_elsewhere(pair: Pair, peer: GrpcPeer, trusts: Trusts, migration_id: str) -> None:
    before = tree_of(trusts.base)
    with pytest.raises(UsageError, match="is no migration's ID"):
        await peer.prepare(reservation(migration_id))
    assert await peer.word(migration_id) is Word.NO_ANSWER
    assert tree_of(trusts.base) == before


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"memory_bytes": (1 << 52) + 1}, UsageError),
        ({"memory_bytes": 1 << 52}, PreflightError),
        ({"root_pid": -1}, UsageError),
        ({"source_port": 1 << 20}, UsageError),
        ({"command": "c" * 100_000}, UsageError),
        ({"addresses": (AddressFacts("10.0.0.1; drop", 24, "eth0"),)}, UsageError),
        ({"addresses": (AddressFacts("127.0.0.1", 8, "lo"),)}, UsageError),
        ({"addresses": (AddressFacts("10.0.0.1", 24, "../eth0"),)}, UsageError),
        ({"addresses": (AddressFacts("10.0.0.1", 24, "eth0"),) * 1000}, UsageError),
    ],
)
async def test_gigantic_and_impossible_reservations(
    pair: Pair, peer: GrpcPeer, changes: dict[str, object], error: type[PhaulError]
) -> None:
    with pytest.raises(error):
        await peer.prepare(reservation(**changes))  # type: ignore[arg-type]
    assert not list(pair.destination.rooms.glob("*"))
    assert not pair.destination.machine.local


async def send(peer: GrpcPeer, *chunks: peer_pb2.ImageChunk) -> None:
    async def stream() -> AsyncIterator[peer_pb2.ImageChunk]:
        for chunk in chunks:
            yield chunk

    await peer._call(peer._stub.SendImages(stream(), timeout=30))


def chunk(name: str, data: bytes = b"x", *, size_bytes: int | None = None, last: bool = True) -> peer_pb2.ImageChunk:
    size = len(data) if size_bytes is None else size_bytes
    digest = hashlib.sha256(data).digest()
    return peer_pb2.ImageChunk(migration_id="0badcafe", name=name, data=data, last=last, sha256=digest, size_bytes=size)


async def test_images_with_names_that_lead_elsewhere_or_sizes_that_lie(
    pair: Pair, peer: GrpcPeer, trusts: Trusts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_service, "SMALL_IMAGES_BYTES", MIB)
    channel = await peer.prepare(reservation())
    room = pair.destination.rooms / "0badcafe"
    (room / "fifo.img.part").symlink_to(trusts.base / "through-a-link")  # as if somebody had got that far
    before = tree_of(trusts.base)
    for name in (
        "../x.img",
        "/tmp/x.img",
        "a/b.img",
        "..",
        ".img",
        "x\0.img",
        "x.img/",
        "i" * 300 + ".img",
        "x.img.part",
    ):
        with pytest.raises(TransferError, match="with the name"):
            await send(peer, chunk(name))
    with pytest.raises(TransferError, match="could not be written"):
        await send(peer, chunk("fifo.img"))
    with pytest.raises(TransferError, match="checksum does not agree"):
        await send(peer, chunk("a.img", size_bytes=1 << 62))
    with pytest.raises(TransferError, match="larger than"):
        await send(peer, *(chunk("b.img", bytes(MIB // 4), last=False) for _ in range(8)))
    with pytest.raises(TransferError, match="came before its end"):
        await send(peer, chunk("c.img", last=False), chunk("d.img"))
    made = {path.removeprefix("b/rooms/0badcafe/") for path in tree_of(trusts.base) - before}
    assert made <= {"a.img.part", "b.img.part", "c.img.part"}
    assert not (trusts.base / "through-a-link").exists()
    await send(peer, chunk("e.img"))  # and who is honest then is served
    channel.close()
    await peer.abort("0badcafe", "over")


async def test_who_stalls_in_the_middle_of_images_is_let_go(
    pair: Pair, peer: GrpcPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_service, "STALL_SECONDS", 0.3)
    channel = await peer.prepare(reservation())

    async def stalls() -> AsyncIterator[peer_pb2.ImageChunk]:
        yield chunk("a.img", last=False)
        await asyncio.sleep(60)

    with pytest.raises(TransferError, match="nothing came"):
        await peer._call(peer._stub.SendImages(stalls(), timeout=30))
    channel.close()
    await peer.abort("0badcafe", "over")


async def test_a_token_opens_once_and_what_was_heard_opens_nothing(pair: Pair, peer: GrpcPeer) -> None:
    """Whoever has listened has the channel's name and the sealed bytes, and sends both again."""
    reply = await peer._call(peer._stub.Prepare(_prepare_request(), timeout=10))
    assert reply.sealed
    port, name = reply.page_channel_port, channel_name(reply.token)

    async def opens(first: bytes) -> asyncio.StreamWriter | None:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(first)
        async with asyncio.timeout(20):
            if await reader.read(1):
                return writer
        writer.close()
        return None

    assert await opens(os.urandom(32)) is None
    assert await opens(reply.token) is None  # the secret is never shown
    first = await opens(name)
    assert first is not None
    assert await opens(name) is None
    second = await peer._call(peer._stub.ReopenPages(peer_pb2.ReopenPagesRequest(migration_id="0badcafe"), timeout=10))
    assert second.token != reply.token
    assert await opens(name) is None
    again = await opens(channel_name(second.token))
    assert again is not None
    wire = SealedWire(again.get_extra_info("socket")._sock, reply.token, Side.SOURCE)  # as it was sealed before
    again.write(bytes(wire._sealer.seal(memoryview(b"R"))))
    with pytest.raises(TransferError, match="changed on its way, or is not from who has its token"):
        await peer.hashed_pages("0badcafe", ())
    for writer in (first, again):
        writer.close()
    await peer.abort("0badcafe", "over")


def _prepare_request() -> peer_pb2.PrepareRequest:
    return peer_pb2.PrepareRequest(migration_id="0badcafe", source_host="a", root_pid=4711, memory_bytes=MIB)


async def test_a_migration_is_only_its_source_s(pair: Pair, peer: GrpcPeer, trusts: Trusts) -> None:
    channel = await peer.prepare(reservation(addresses=(ADDRESS,)))
    trusts.give("c")
    trusts.store("a").put_host(trusts.store("c").host_file.read_text())  # from the same address, as another host
    other = pair.source.server._migrations._connect(pair.destination.target)
    assert isinstance(other, GrpcPeer)
    try:
        for step in (
            other.abort("0badcafe", "x"),
            other.resume("0badcafe"),
            other.restore("0badcafe"),
            other.hashed_pages("0badcafe", ()),
            other.reopen("0badcafe"),
            other.prepare(reservation()),
            send(other, chunk("a.img")),
        ):
            with pytest.raises(NotTrustedError, match="this migration came from another host"):
                await step
        assert await other.word("0badcafe") is Word.RESERVED
    finally:
        await other.close()
    assert pair.destination.machine.local == [ADDRESS]
    channel.close()
    await peer.abort("0badcafe", "over")


def test_of_too_many_strangers_those_go_that_are_most() -> None:
    dropped: list[str] = []
    strangers = Strangers(4)
    for name, address in (("honest", "1"), ("x1", "2"), ("x2", "2"), ("x3", "2"), ("x4", "2"), ("y", "3")):
        strangers.add(name, address, lambda name=name: dropped.append(name))  # type: ignore[misc]
    assert dropped == ["x1", "x2"]
    strangers.discard("honest")
    strangers.discard("honest")
    assert len(strangers) == 3


def test_what_is_repeated_is_said_seldom_and_counted() -> None:
    now = 0.0
    seldom = Seldom(10, lambda: now)
    assert [seldom.times("a") for _ in range(5)] == [1, 0, 0, 0, 0]
    assert seldom.times("b") == 1
    now = 10.0
    assert seldom.times("a") == 5
    for number in range(10_000):
        seldom.times(str(number))
    assert len(seldom._seen) <= 256
