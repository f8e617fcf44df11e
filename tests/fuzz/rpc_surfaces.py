"""The gRPC surface behind gRPC: the methods of both services, called with whatever messages a caller can encode."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from google.protobuf.message import DecodeError, Message

from phaul.agent import rpc_errors
from phaul.agent.agent_service import AgentService
from phaul.agent.audit import Audit
from phaul.agent.gatekeeper import Gatekeeper
from phaul.agent.history import History
from phaul.agent.journals import Journals
from phaul.agent.leftovers import Leftovers
from phaul.agent.outgoing import OutgoingMigrations
from phaul.agent.page_listener import PageListener, ReceivedFiles
from phaul.agent.peer_client import GrpcPeer
from phaul.agent.peer_service import HistoryObserver, PeerService
from phaul.agent.policy_file import PolicyFile
from phaul.agent.resolution import Resolver
from phaul.agent.restores import Restores
from phaul.agent.settlers import Settlers
from phaul.agent.tls_bridge import LiveConnections
from phaul.criu.images import encode_pagemap
from phaul.errors import PhaulError, UnreachableError
from phaul.lab.fake_machine import PAGE_BYTES, FakeMachine, FakeTree
from phaul.lab.fakes import fake_host
from phaul.migration.arrivals import Arrivals
from phaul.migration.policy import Belonging, Person
from phaul.rpc.v1 import agent_pb2, dirty_rate_pb2, facts_pb2, peer_pb2
from tests.fuzz.sandbox import Sandbox
from tests.fuzz.surface import Finding, Reader, log_nothing, part

ANSWER_SECONDS = 10.0  # what takes longer hangs
READER = ReceivedFiles()
WAITING_SECONDS = 0.02  # for calls that wait for pages, which never come here
MOST_CALLS = 12
MIGRATION = "0badcafe"
ROOT = Person(0, "root", (), True)

PEER_METHODS: tuple[tuple[str, type[Message]], ...] = (
    ("Observe", peer_pb2.ObserveRequest),
    ("Prepare", peer_pb2.PrepareRequest),
    ("ReopenPages", peer_pb2.ReopenPagesRequest),
    ("SendImages", peer_pb2.ImageChunk),
    ("HashedPages", peer_pb2.HashedPagesRequest),
    ("ReceivedContent", peer_pb2.ReceivedContentRequest),
    ("Restore", peer_pb2.RestoreRequest),
    ("Resume", peer_pb2.ResumeRequest),
    ("Abort", peer_pb2.AbortRequest),
    ("AskWord", peer_pb2.AskWordRequest),
    ("RunHooks", peer_pb2.RunHooksRequest),
)
WAITS = {"HashedPages", "ReceivedContent", "Restore"}
STREAMED = {"SendImages", "HashedPages"}  # requests
PERSON_METHODS: tuple[tuple[str, type[Message]], ...] = (
    ("DescribeHost", agent_pb2.DescribeHostRequest),
    ("Check", facts_pb2.MigrationRequest),
    ("MeasureDirtyRate", dirty_rate_pb2.DirtyRateRequest),
    ("StartMigration", facts_pb2.MigrationRequest),
    ("WatchMigration", agent_pb2.MigrationReference),
    ("CancelMigration", agent_pb2.MigrationReference),
    ("ListMigrations", agent_pb2.ListMigrationsRequest),
    ("DescribeDoubt", agent_pb2.MigrationReference),
    ("ResolveMigration", agent_pb2.ResolveRequest),
    ("DescribePolicy", agent_pb2.DescribePolicyRequest),
    ("FindLeftovers", agent_pb2.LeftoversRequest),
    ("RemoveLeftovers", agent_pb2.LeftoversRequest),
)


class _RefusedError(Exception):
    """A call was answered with a documented error."""


class Caller:
    """`ServicerContext`, as far as the services use it."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        """As gRPC names it."""
        return self._peer


async def _no_abort(context: Caller, method: str, error: Exception) -> NoReturn:
    if isinstance(error, PhaulError):
        raise _RefusedError(error.code) from error
    raise Finding(f"{method}: {type(error).__name__}: {error}") from error


class NobodyThere:
    """The peer that a workload is to be sent to. Nobody answers."""

    name = "b:7428"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def fail(*_: Any, **__: Any) -> Any:
            if name in ("close", "own_address"):
                return ""
            raise UnreachableError("nobody is there")

        return fail


class World:
    """The parts of an agent around a fake machine, made anew for every input."""

    def __init__(self, directory: Path, listener: PageListener) -> None:
        machine = FakeMachine("b")
        machine.trees[4242] = FakeTree(4242, bytes(PAGE_BYTES))
        host = fake_host(machine, directory / "rooms")
        history, self.journals = History(directory / "migrations"), Journals(directory / "migrations")

        def connect(typed: str) -> GrpcPeer:
            return NobodyThere()  # type: ignore[return-value]  # what is called of it

        async def look(root_pid: int) -> tuple[Belonging, ...]:
            return ()

        self.audit = Audit(directory / "audit.jsonl")
        policy = PolicyFile(directory / "policy.toml")
        self.gate = Gatekeeper(policy, self.audit, lambda _: ROOT, LiveConnections(), look, lambda: 0)

        self.migrations = OutgoingMigrations(host, history, connect, self.journals)
        self.arrivals = Arrivals(
            host, self.journals, HistoryObserver(history), listener.expect, connect, ReceivedFiles(), self.gate.admit
        )
        settlers = Settlers(host, self.journals, history, self.arrivals, connect)
        resolver = Resolver(host, history, self.journals, self.migrations, self.arrivals, settlers, connect)
        self.peer_service = PeerService(host, self.arrivals, self.journals, listener, self.migrations.killed, self.gate)
        leftovers = Leftovers(host, self.journals, self.arrivals, settlers, lambda _: False)
        self.person_service = AgentService(
            host,
            self.migrations,
            history,
            resolver,
            self.arrivals,
            self.gate,
            leftovers,
            Restores(host, self.arrivals),
        )

    async def close(self) -> None:
        """Nothing goes on."""
        await self.migrations.close()
        await self.arrivals.close()
        await self.audit.close()
        for migration_id in list(self.journals._open):
            self.journals.forget(migration_id)


class Service(ABC):
    """One of the two services: calls after one another, each a method and its message."""

    methods: tuple[tuple[str, type[Message]], ...] = ()

    def __init__(self, sandbox: Sandbox) -> None:
        log_nothing()
        rpc_errors._abort = _no_abort  # type: ignore[assignment]
        self._sandbox = sandbox
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)  # gRPC asks for it
        self._listener = PageListener(PAGE_BYTES, encode_pagemap, sealed=True)
        self._loop.run_until_complete(self._listener.start("127.0.0.1", 0))

    @abstractmethod
    def service(self, world: World) -> Any:
        """Which."""

    def take(self, data: bytes) -> None:
        """Make the calls."""
        self._loop.run_until_complete(self._take(data))

    async def _take(self, data: bytes) -> None:
        world = World(self._sandbox.work, self._listener)
        reader = Reader(data)
        try:
            for _ in range(MOST_CALLS):
                if not reader:
                    break
                name, kind = self.methods[reader.byte() % len(self.methods)]
                messages = []
                for _ in range(1 + reader.byte() % 4 if name in STREAMED else 1):
                    with contextlib.suppress(DecodeError):  # gRPC answers that by itself
                        messages.append(kind.FromString(reader.part()))
                if messages:
                    await self._call(self.service(world), name, messages)
        finally:
            await world.close()

    async def _call(self, service: Any, name: str, messages: list[Any]) -> None:
        context = Caller("ipv4:127.0.0.1:40000")
        method = getattr(service, name)
        if name == "SendImages":
            call = asyncio.ensure_future(method(_stream(messages), context))
        elif name == "HashedPages":
            call = asyncio.ensure_future(_all_of(method(_stream(messages), context)))
        elif name == "WatchMigration":
            call = asyncio.ensure_future(_all_of(method(messages[0], context)))
        else:
            call = asyncio.ensure_future(method(messages[0], context))
        done, _ = await asyncio.wait([call], timeout=WAITING_SECONDS if name in WAITS else ANSWER_SECONDS)
        if not done:
            call.cancel()
            await asyncio.wait([call])
            if name not in WAITS:
                raise Finding(f"{name} hangs")
            return
        try:
            call.result()
        except (_RefusedError, asyncio.CancelledError):
            pass


async def _stream(messages: list[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


async def _all_of(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


def calls(methods: tuple[tuple[str, type[Message]], ...], *wanted: tuple[str, Message]) -> bytes:
    """An input that makes these calls."""
    names = [name for name, _ in methods]
    return b"".join(
        bytes([names.index(name)]) + (b"\0" if name in STREAMED else b"") + part(message.SerializeToString())
        for name, message in wanted
    )


class Peer(Service):
    """What other hosts call."""

    methods = PEER_METHODS

    def service(self, world: World) -> Any:
        """`PeerService`."""
        return world.peer_service

    @staticmethod
    def seeds() -> Iterator[bytes]:
        """A migration step by step, and steps with IDs and names that lead elsewhere."""
        address = facts_pb2.AddressFacts(address="10.9.9.9", prefix_length=24, device="eth0")
        for migration_id in (MIGRATION, "../../x", "/tmp/x", "", "..", "\0", "a" * 300, "0badcafe/../../x", "{"):
            prepare = peer_pb2.PrepareRequest(
                migration_id=migration_id, source_host="a", root_pid=7, command="c", memory_bytes=1 << 20, source_port=1
            )
            prepare.addresses.append(address)
            image = peer_pb2.ImageChunk(migration_id=migration_id, name="a.img", data=b"x", last=True)
            steps: list[tuple[str, Message]] = [
                ("Observe", peer_pb2.ObserveRequest(ids=[7])),
                ("Prepare", prepare),
                ("SendImages", image),
                ("ReopenPages", peer_pb2.ReopenPagesRequest(migration_id=migration_id)),
                ("AskWord", peer_pb2.AskWordRequest(migration_id=migration_id)),
                ("Resume", peer_pb2.ResumeRequest(migration_id=migration_id)),
                ("HashedPages", peer_pb2.HashedPagesRequest(migration_id=migration_id)),
                ("ReceivedContent", peer_pb2.ReceivedContentRequest(migration_id=migration_id, name="pagemap-7.img")),
                ("Abort", peer_pb2.AbortRequest(migration_id=migration_id, reason="r")),
            ]
            yield calls(PEER_METHODS, *steps)
            for step in steps:
                yield calls(PEER_METHODS, step)
        for device, text in (("eth0", "nonsense"), ("../x", "10.0.0.1"), ("eth0; drop", "::1"), ("", "")):
            prepare = peer_pb2.PrepareRequest(migration_id=MIGRATION, memory_bytes=1 << 63, root_pid=-1)
            prepare.addresses.append(facts_pb2.AddressFacts(address=text, prefix_length=1 << 31, device=device))
            yield calls(PEER_METHODS, ("Prepare", prepare))
        file = facts_pb2.FileFacts(path="/etc/../etc/x", use=facts_pb2.FILE_USE_MAPPED)
        yield calls(PEER_METHODS, ("Observe", peer_pb2.ObserveRequest(ids=[-1, 1 << 30], files=[file])))


class People(Service):
    """What people on this host call."""

    methods = PERSON_METHODS

    def service(self, world: World) -> Any:
        """`AgentService`."""
        return world.person_service

    @staticmethod
    def seeds() -> Iterator[bytes]:
        """Requests that are refused, each for another reason."""
        for destination in ("b", "b:0", "[::1]:7428", "", "a b", "\0", "x" * 300):
            request = facts_pb2.MigrationRequest(root_pid=4242, destination=destination, timeout_seconds=float("nan"))
            request.addresses.append(facts_pb2.AddressRequest(address="10.0.0.1/24", prefix_length=99))
            yield calls(PERSON_METHODS, ("Check", request))
            yield calls(
                PERSON_METHODS, ("StartMigration", request), ("ListMigrations", agent_pb2.ListMigrationsRequest())
            )
        for text in (MIGRATION, "../x", "", "0"):
            reference = agent_pb2.MigrationReference(migration_id=text)
            resolve = agent_pb2.ResolveRequest(migration_id=text, choice=agent_pb2.CHOICE_RESUME_HERE, force=True)
            for name in ("WatchMigration", "CancelMigration", "DescribeDoubt"):
                yield calls(PERSON_METHODS, (name, reference))
            yield calls(PERSON_METHODS, ("ResolveMigration", resolve))
        yield calls(PERSON_METHODS, ("DescribeHost", agent_pb2.DescribeHostRequest()))
        rate = dirty_rate_pb2.DirtyRateRequest(root_pid=4242, seconds=-1, destination="b")
        yield calls(PERSON_METHODS, ("MeasureDirtyRate", rate))
