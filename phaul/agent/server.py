"""The daemon: one a host. A Unix socket for the person, a TCP port for other agents, a TCP port for memory pages.

Called by `phaul agent` and by tests, which run two of them in one process. Everything that it starts, `close` ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from phaul import __version__
from phaul.agent.agent_service import AgentService
from phaul.agent.audit import AGENT, Audit
from phaul.agent.client import MESSAGE_LIMIT_BYTES
from phaul.agent.destination import Destination, parse_destination
from phaul.agent.gatekeeper import Gatekeeper
from phaul.agent.history import History
from phaul.agent.journals import Journals
from phaul.agent.leftovers import Leftovers
from phaul.agent.local_front import LocalFront
from phaul.agent.outgoing import OutgoingMigrations
from phaul.agent.page_listener import PageListener, ReceivedFiles
from phaul.agent.peer_client import GrpcPeer
from phaul.agent.peer_service import HistoryObserver, PeerService
from phaul.agent.policy_file import PolicyFile
from phaul.agent.resolution import Resolver
from phaul.agent.restores import Restores
from phaul.agent.settlers import Settlers
from phaul.agent.stores import or_directory
from phaul.agent.tls_bridge import LiveConnections
from phaul.agent.tls_front import TlsFront
from phaul.agent.tls_tunnel import remove_leftovers
from phaul.agent.trust import is_loopback, require_loopback_or_insecure, trusted_store
from phaul.agent.trust_keeper import TrustKeeper
from phaul.agent.wiring import look_at_belongings, make_connect, make_host
from phaul.config import AgentConfig
from phaul.criu import loader
from phaul.criu.images import encode_pagemap
from phaul.errors import UsageError
from phaul.migration.arrivals import Arrivals
from phaul.migration.facts import HostFacts
from phaul.migration.host import Host
from phaul.migration.policy import Policy
from phaul.observe.logs import configure_logs
from phaul.rpc.v1 import agent_pb2, peer_pb2
from phaul.rpc.v1.agent_pb2_grpc import add_AgentServicer_to_server
from phaul.rpc.v1.peer_pb2_grpc import add_PeerServicer_to_server
from phaul.system import descriptors, keeper, notify, placement
from phaul.system.attendants import Attendants
from phaul.system.children import adopt_orphans
from phaul.system.memory import limit_arenas, page_size_bytes

log = structlog.get_logger(__name__)

STOP_GRACE_SECONDS = 2.0
IDLE_POLL_SECONDS = 0.25
MALLOC_ARENAS = 2
PEER_SOCKET = "peers.sock"  # in the runtime directory: gRPC behind TLS
PERSON_SOCKET = "people.sock"  # likewise, behind the socket of this host's people
POLICY_SECONDS = 2.0  # how long a changed policy file may go unseen
ATTENDANTS_SECONDS = 1.0  # after a migration, that its end is not held up
ATTENDANTS = (keeper.__name__, loader.__name__)
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),  # the pings of `peer_client` are welcome
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_concurrent_streams", 128),  # a connection
    ("grpc.so_reuseport", 0),  # a second agent on the port is an error, not a second opinion
]


class AgentServer:
    """A running agent. Owns its servers, sockets and migrations from entering to leaving its context."""

    def __init__(
        self, config: AgentConfig, host: Host | None = None, connect: Callable[[str], GrpcPeer] | None = None
    ) -> None:
        self._config = config
        self._attendants = Attendants()
        self._host = host or make_host(config, self._attendants)
        self._attended = host is None
        self._audit = Audit(config.audit_path)
        self._policy = PolicyFile(config.policy)
        self._history = History(config.state_dir / "migrations", self._audit.migration)
        self._journals = Journals(config.state_dir / "migrations")
        self._store = trusted_store(config)
        sealed = self._store is not None and config.page_encryption == "on"
        self._listener = PageListener(page_size_bytes(), encode_pagemap, sealed=sealed)
        describe = self._host.describe
        self._host = dataclasses.replace(
            self._host, peer_port=lambda: self.peer_port, describe=lambda: self._describe(describe)
        )
        self._live = LiveConnections()
        self._people = LocalFront(config.socket, config.runtime_dir / PERSON_SOCKET)
        self._gate = Gatekeeper(
            self._policy, self._audit, self._people.person, self._live, look_at_belongings, self._under_way
        )
        to_host = connect or make_connect(config, self._store, self._live, self._gate.why_not_to)
        send_to = or_directory(to_host, self._host, self._is_restoring)
        ask = or_directory(connect or make_connect(config, self._store, self._live), self._host, self._is_restoring)
        self._migrations = OutgoingMigrations(self._host, self._history, send_to, self._journals)
        self._arrivals = Arrivals(
            self._host,
            self._journals,
            HistoryObserver(self._history),
            self._listener.expect,
            ask,
            ReceivedFiles(),
            self._gate.admit,
        )
        self._restores = Restores(self._host, self._arrivals)
        self._peer_service = PeerService(
            self._host, self._arrivals, self._journals, self._listener, self._migrations.killed, self._gate
        )
        self._settlers = Settlers(self._host, self._journals, self._history, self._arrivals, ask)
        self._resolver = Resolver(
            self._host, self._history, self._journals, self._migrations, self._arrivals, self._settlers, ask
        )
        self._person_server = grpc.aio.server(options=OPTIONS)
        self._peer_server = grpc.aio.server(options=OPTIONS)
        self._front: TlsFront | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._filling: asyncio.Task[None] | None = None
        self.peer_port = 0

    async def __aenter__(self) -> Self:
        config = self._config
        self._policy.start()
        listen = parse_destination_or_any_port(config.listen)
        if self._store is not None:
            self._store.current()  # or say what is wrong with it
            if config.page_encryption == "off":
                log.warning("agent.page_encryption_off", meaning="the memory of workloads travels in the clear")
        else:
            require_loopback_or_insecure(listen.host, config.insecure, "listen on")
        if config.insecure and not is_loopback(listen.host):
            log.warning(
                "agent.insecure",
                listen=config.listen,
                meaning="whoever reaches this port can start processes here as root, and memory travels in the clear",
            )
        for directory in (config.runtime_dir, config.state_dir, config.socket.parent):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            await self._listener.start(listen.host, config.page_port)
        except OSError as error:
            raise UsageError(
                f"the page port {config.page_port} cannot be listened on: {error.strerror}",
                hint="Is another agent running? Choose another port with --page-port (0: any).",
            ) from error
        await self._serve_peers(listen)
        remove_leftovers(config.runtime_dir)
        await self._serve_people()
        await self._peer_server.start()
        if self._store is not None:
            self._keeper = asyncio.create_task(TrustKeeper(self._store, self._live, self._audit).run())
        self._settlers.start()
        await self._person_server.start()
        await self._people.start()
        self._policy.changed = self._policy_changed
        self._policy_changed(self._policy.current())
        self._watch = asyncio.create_task(self._watch_policy())
        if self._attended:
            self._filling = asyncio.create_task(self._fill_attendants())
        log.info(
            "agent.ready",
            version=__version__,
            socket=str(config.socket),
            listen=f"{listen.host}:{self.peer_port}",
            page_port=self._listener.port,
            certificate=str(self._store.current().names) if self._store else "none",
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in (self._keeper, self._watch, self._filling):
            if task is not None:
                task.cancel()
        await self._settlers.close()
        await self._migrations.close()
        await self._person_server.stop(STOP_GRACE_SECONDS)
        await self._people.close()
        await self._peer_server.stop(STOP_GRACE_SECONDS)
        if self._front is not None:
            await self._front.close()
        await self._arrivals.close()
        await self._listener.close()
        await self._attendants.close()
        await self._audit.close()
        log.info("agent.stopped")

    @property
    def busy(self) -> bool:
        """Whether ending now would leave a migration, a copy that is held, or a peer that speaks with us."""
        return bool(self._migrations.roots_under_way or self._arrivals.busy or self._settlers.busy or len(self._live))

    async def wait_idle(self, seconds: float, at_once: asyncio.Event) -> None:
        """Return when nothing has been under way for so long; with `at_once`, as soon as nothing is."""
        clock = asyncio.get_running_loop().time
        since = clock()
        while True:
            if self.busy:
                since = clock()
            elif clock() - since >= (0 if at_once.is_set() else seconds):
                return
            await asyncio.sleep(IDLE_POLL_SECONDS)

    async def _serve_peers(self, listen: Destination) -> None:
        add_PeerServicer_to_server(self._peer_service, self._peer_server)
        await _add_standard_services(self._peer_server, peer_pb2.DESCRIPTOR.services_by_name["Peer"].full_name)
        try:
            if self._store is None:
                self.peer_port = self._peer_server.add_insecure_port(str(listen))
            else:
                behind = self._config.runtime_dir / PEER_SOCKET
                self._front = TlsFront(self._store, self._live, behind, self._audit)
                self.peer_port = await self._front.start(listen.host, listen.port)
                _bind_socket(self._peer_server, behind)
        except (RuntimeError, OSError) as error:
            raise UsageError(
                f"the agent cannot listen on {listen}",
                hint="Is another agent running, or the address not local? Choose another with --listen.",
                detail=str(error),
            ) from error

    async def _serve_people(self) -> None:
        leftovers = Leftovers(
            self._host,
            self._journals,
            self._arrivals,
            self._settlers,
            lambda migration_id: self._migrations.under_way(migration_id) is not None,
        )
        service = AgentService(
            self._host,
            self._migrations,
            self._history,
            self._resolver,
            self._arrivals,
            self._gate,
            leftovers,
            self._restores,
        )
        add_AgentServicer_to_server(service, self._person_server)
        await _add_standard_services(self._person_server, agent_pb2.DESCRIPTOR.services_by_name["Agent"].full_name)
        _bind_socket(self._person_server, self._config.runtime_dir / PERSON_SOCKET)

    def _is_restoring(self, migration_id: str) -> bool:
        return self._restores.is_under_way(migration_id)

    def _under_way(self) -> int:
        return len(self._migrations.roots_under_way) + self._arrivals.under_way

    async def _describe(self, describe: Callable[[], Awaitable[HostFacts]]) -> HostFacts:
        return dataclasses.replace(await describe(), most_memory_bytes=self._policy.current().limits.memory or 0)

    def reload_policy(self) -> None:
        """Read the policy file again."""
        self._policy.reload()

    def _policy_changed(self, policy: Policy) -> None:
        self._people.open_to_all(bool(policy.users))
        self._audit.note("policy.in_force", AGENT, "", path=str(self._policy.path) if self._policy.exists else "none")

    async def _fill_attendants(self) -> None:
        while True:
            if not self._under_way():
                await self._attendants.fill(ATTENDANTS)
            await asyncio.sleep(ATTENDANTS_SECONDS)

    async def _watch_policy(self) -> None:
        while True:
            await asyncio.sleep(POLICY_SECONDS)
            self._policy.current()


def _bind_socket(server: grpc.aio.Server, path: Path) -> None:
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise UsageError(f"the agent cannot listen on the socket {path}", detail=str(error)) from error
    finally:
        os.umask(mask)


async def _add_standard_services(server: grpc.aio.Server, name: str) -> None:
    checks = health.aio.HealthServicer()  # type: ignore[attr-defined]  # not in its stubs
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for service in ("", name):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def parse_destination_or_any_port(text: str) -> Destination:
    """Read where to listen; unlike a destination, port 0 (any) is allowed."""
    if text.endswith(":0"):
        return Destination(parse_destination(text.removesuffix(":0")).host, 0)
    return parse_destination(text)


async def serve(config: AgentConfig) -> None:
    """Run an agent until SIGTERM or SIGINT."""
    configure_logs(config.log_level, config.log_format)
    adopt_orphans()
    limit_arenas(MALLOC_ARENAS)
    descriptors.allow_many()
    placement.use(config.children_group)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AgentServer(config) as server, notify.serving():
        loop.add_signal_handler(signal.SIGHUP, server.reload_policy)
        if config.exit_when_idle:
            at_once = asyncio.Event()
            loop.add_signal_handler(signal.SIGUSR1, at_once.set)
            idle = asyncio.create_task(server.wait_idle(config.exit_when_idle, at_once))
            idle.add_done_callback(lambda _: stop.set())
        await stop.wait()
        log.info("agent.stopping")
