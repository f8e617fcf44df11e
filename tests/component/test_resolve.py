"""Migrations in doubt between two real agents, settled by a person: what is told, what runs, what the other finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from phaul.agent.client import AgentClient
from phaul.agent.destination import Destination, parse_destination
from phaul.agent.peer_client import GrpcPeer
from phaul.agent.server import AgentServer
from phaul.config import AgentConfig
from phaul.errors import InDoubtError, UnreachableError, UsageError
from phaul.lab.fake_machine import FakeMachine, TreeState
from phaul.lab.fakes import fake_host
from phaul.migration import coordinator, settlement
from phaul.migration.peer import PageChannel, Reservation
from phaul.rpc.v1 import agent_pb2 as pb
from phaul.rpc.v1 import facts_pb2, peer_pb2
from tests.component.conftest import ADDRESS, PID, tree

SOON_SECONDS = 15.0
QUIET_SECONDS = 0.3  # in which a host that may not run anything shows that it does not

SAFE, UNSAFE, IMPOSSIBLE = pb.SAFETY_SAFE, pb.SAFETY_UNSAFE, pb.SAFETY_IMPOSSIBLE


@dataclass
class Link:
    """What is between the two agents. It breaks with the call `cut_at`; `blocked` names one that alone is lost."""

    cut: bool = False
    cut_at: str = ""
    blocked: str = ""


class CutStub:
    """A stub whose calls do not get through a link that is cut."""

    def __init__(self, link: Link, stub: Any) -> None:
        self._link, self._stub = link, stub

    def __getattr__(self, name: str) -> Any:
        if name == self._link.cut_at:
            self._link.cut = True
        if self._link.cut or name == self._link.blocked:
            raise UnreachableError("the link is cut")
        return getattr(self._stub, name)


class CutPeer(GrpcPeer):
    """The other agent, over a link."""

    def __init__(self, link: Link, destination: Destination, channels: list[PageChannel]) -> None:
        super().__init__(destination)
        self._stub = CutStub(link, self._stub)  # type: ignore[assignment]
        self._channels = channels

    async def prepare(self, reservation: Reservation) -> PageChannel:
        channel = await super().prepare(reservation)
        self._channels.append(channel)
        return channel


class Agent:
    """One host whose agent can be killed and started again; its port and state stay."""

    def __init__(self, name: str, base: Path, link: Link) -> None:
        self.machine = FakeMachine(name)
        self.rooms = base / "rooms"
        self._base = base
        self._link = link
        self._port = 0
        self._server: AgentServer | None = None
        self._client: AgentClient | None = None
        self._channels: list[PageChannel] = []

    @property
    def client(self) -> AgentClient:
        assert self._client is not None
        return self._client

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        self.machine.agent_alive = lambda: True
        config = AgentConfig(
            socket=self._base / "agent.sock",
            listen=f"127.0.0.1:{self._port}",
            page_port=0,
            runtime_dir=self._base / "run",
            state_dir=self._base / "state",
        )
        host = fake_host(self.machine, self.rooms)
        server = AgentServer(config, host, self._connect)
        self._server = await server.__aenter__()
        self._port = server.peer_port
        self._client = await AgentClient(config.socket).__aenter__()

    def _connect(self, typed: str) -> CutPeer:
        return CutPeer(self._link, parse_destination(typed), self._channels)

    async def kill(self) -> None:
        """Its end as SIGKILL makes it: from now on it does nothing, and each CRIU rolls back."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self.machine.agent_alive = lambda: False
        self.machine.kill_agent()
        await self.client.__aexit__(None, None, None)
        tasks = [each.task for each in server._migrations._migrations.values() if each.task is not None]
        tasks += [each.lease for each in server._arrivals._incoming.values() if each.lease is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server._settlers.close()
        await server._person_server.stop(0)
        await server._peer_server.stop(0)
        await server._listener.close()
        for channel in self._channels:
            channel.close()

    @property
    def state(self) -> TreeState:
        return self.machine.state(PID)

    async def summary(self) -> pb.MigrationSummary:
        (summary,) = await self.client.list_migrations()
        return summary

    async def wait_outcome(self, wanted: pb.Outcome.ValueType, message: str = "") -> pb.MigrationSummary:
        async with asyncio.timeout(SOON_SECONDS):
            while (summary := await self.summary()).outcome != wanted or message not in summary.error.message:
                await asyncio.sleep(0.02)
        return summary


class Two:
    """Source and destination, and the tree PID on the source, under ADDRESS."""

    def __init__(self, base: Path) -> None:
        self.link = Link()
        self.source, self.destination = Agent("a", base / "a", self.link), Agent("b", base / "b", self.link)
        self.source.machine.trees[PID] = tree()
        self.source.machine.local.append(ADDRESS)
        self.id = ""

    async def migrate(self, cut_at: str) -> None:
        """Migrate until the link breaks, with this call of the source."""
        self.link.cut_at = cut_at
        address = facts_pb2.AddressRequest(address=ADDRESS.address, prefix_length=ADDRESS.prefix_length)
        request = facts_pb2.MigrationRequest(root_pid=PID, destination=self.destination.target, addresses=[address])
        self.id = await self.source.client.start(request)
        async with asyncio.timeout(SOON_SECONDS):
            while not self.link.cut:
                await asyncio.sleep(0.005)

    def heal(self) -> None:
        self.link.cut_at, self.link.cut = "", False

    async def safeties(self, agent: Agent) -> tuple[int, int]:
        doubt = await agent.client.describe_doubt(self.id)
        assert [option.choice for option in doubt.options] == [pb.CHOICE_RESUME_HERE, pb.CHOICE_ABORT_HERE]
        assert all(option.reason for option in doubt.options)
        return doubt.options[0].safety, doubt.options[1].safety

    async def runs_only_on(self, agent: Agent, seconds: float = QUIET_SECONDS) -> None:
        other = self.source if agent is self.destination else self.destination
        async with asyncio.timeout(seconds + 1):
            for _ in range(round(seconds / 0.02)):
                assert agent.state is TreeState.RUNNING
                assert other.state is TreeState.DEAD
                await asyncio.sleep(0.02)
        assert (agent.machine.local, other.machine.local) == ([ADDRESS], [])

    async def clean(self) -> None:
        async with asyncio.timeout(SOON_SECONDS):
            for agent in (self.source, self.destination):
                while agent.machine.fences or (agent.rooms.exists() and list(agent.rooms.iterdir())):
                    await asyncio.sleep(0.02)


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    for module in (settlement, coordinator):
        monkeypatch.setattr(module, "RESUME_BACKOFF_SECONDS", (0.05,))
    hosts = Two(tmp_path)
    async with AsyncExitStack() as stack:
        for agent in (hosts.source, hosts.destination):
            await agent.start()
            stack.push_async_callback(agent.kill)
        yield hosts


async def test_a_coordinator_without_an_answer_is_in_doubt_and_ends_by_itself(two: Two) -> None:
    await two.migrate("Resume")
    summary = await two.source.wait_outcome(pb.OUTCOME_IN_DOUBT)
    assert (summary.error.code, summary.ended_unix_us) == ("InDoubtError", 0)
    assert f"`phaul resolve {two.id}`" in summary.error.hint
    doubt = await two.source.client.describe_doubt(two.id)
    assert (doubt.tree, doubt.other, doubt.stands) == (pb.TREE_DEAD, peer_pb2.WORD_NO_ANSWER, "dead")
    assert doubt.marks[-1].startswith("COMMIT")
    two.heal()
    summary = await two.source.wait_outcome(pb.OUTCOME_COMPLETED)
    assert summary.report.downtime_us > 0
    assert not summary.HasField("error")
    await two.runs_only_on(two.destination)
    await two.clean()


@pytest.mark.parametrize("restarted", [True, False], ids=["restarted", "held by the same agent"])
async def test_the_copy_runs_by_decision_and_the_source_finds_it_completed(two: Two, restarted: bool) -> None:
    await two.migrate("Resume")
    await two.source.kill()
    if restarted:
        await two.destination.kill()
        assert two.destination.state is TreeState.DEAD
        await two.destination.start()
        await two.destination.wait_outcome(pb.OUTCOME_IN_DOUBT)
    doubt = await two.destination.client.describe_doubt(two.id[:3])
    assert (doubt.other, doubt.images_complete) == (peer_pb2.WORD_NO_ANSWER, True)
    assert doubt.tree == (pb.TREE_DEAD if restarted else pb.TREE_HELD)
    assert await two.safeties(two.destination) == (UNSAFE, UNSAFE)
    for choice in (pb.CHOICE_RESUME_HERE, pb.CHOICE_ABORT_HERE):
        with pytest.raises(InDoubtError, match="not safe"):
            await two.destination.client.resolve(two.id, choice, force=False)
    assert two.destination.state is not TreeState.RUNNING

    reply = await two.destination.client.resolve(two.id, pb.CHOICE_RESUME_HERE, force=True)
    assert reply.outcome == pb.OUTCOME_COMPLETED
    await two.runs_only_on(two.destination)
    assert (await two.destination.summary()).outcome == pb.OUTCOME_COMPLETED
    with pytest.raises(UsageError, match="nothing to resolve"):
        await two.destination.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=True)

    two.heal()
    await two.source.start()
    await two.source.wait_outcome(pb.OUTCOME_COMPLETED)
    await two.runs_only_on(two.destination)
    await two.clean()


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_source_that_says_committed_is_not_overruled(two: Two, restarted: bool) -> None:
    """It cannot tell the destination by itself, but answers: the copy may run, and must not be thrown away."""
    await two.migrate("Resume")
    if restarted:
        await two.source.kill()
        await two.source.start()
    await two.source.wait_outcome(pb.OUTCOME_IN_DOUBT)
    two.heal()
    two.link.blocked = "Resume"
    assert await two.safeties(two.destination) == (SAFE, IMPOSSIBLE)
    with pytest.raises(InDoubtError, match="last copy") as refused:
        await two.destination.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=True)
    assert refused.value.exit_status == 40
    reply = await two.destination.client.resolve(two.id, pb.CHOICE_RESUME_HERE, force=False)
    assert reply.outcome == pb.OUTCOME_COMPLETED
    two.link.blocked = ""
    await two.source.wait_outcome(pb.OUTCOME_COMPLETED)
    await two.runs_only_on(two.destination)
    await two.clean()


async def test_given_up_on_the_source_and_the_copy_comes_back(two: Two) -> None:
    await two.migrate("Resume")
    await two.destination.kill()
    await two.source.wait_outcome(pb.OUTCOME_IN_DOUBT)
    assert await two.safeties(two.source) == (IMPOSSIBLE, UNSAFE)
    with pytest.raises(InDoubtError, match="processes on this host are dead"):
        await two.source.client.resolve(two.id, pb.CHOICE_RESUME_HERE, force=True)
    reply = await two.source.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=True)
    assert reply.outcome == pb.OUTCOME_LOST
    assert (two.source.machine.fences, two.source.machine.local, two.source.state) == ({}, [], TreeState.DEAD)
    events = [event async for event in two.source.client.watch(two.id)]
    assert events[-1].finished.error.code == "LostError"

    two.heal()
    await two.destination.start()
    await two.destination.wait_outcome(pb.OUTCOME_COMPLETED)
    await two.runs_only_on(two.destination)
    await two.clean()


async def test_given_up_on_a_source_that_was_restarted(two: Two) -> None:
    await two.migrate("Resume")
    await two.source.kill()
    await two.destination.kill()
    await two.source.start()
    await two.source.wait_outcome(pb.OUTCOME_IN_DOUBT)
    assert await two.safeties(two.source) == (IMPOSSIBLE, UNSAFE)
    reply = await two.source.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=True)
    assert reply.outcome == pb.OUTCOME_LOST
    await two.source.kill()
    await two.source.start()
    assert (await two.source.summary()).outcome == pb.OUTCOME_LOST
    two.heal()
    await two.destination.start()
    await two.destination.wait_outcome(pb.OUTCOME_COMPLETED)
    await two.runs_only_on(two.destination)
    await two.clean()


async def test_thrown_away_on_the_destination(two: Two) -> None:
    """The source rolled back and could not say so; a person says it for it."""
    reached = asyncio.Event()

    def fault(act: str) -> None:
        if act == "network.remove":
            two.link.cut = True
            reached.set()
            raise OSError(5, "on purpose")

    two.source.machine.fault = fault
    await two.migrate("nothing")
    await asyncio.wait_for(reached.wait(), SOON_SECONDS)
    await two.source.wait_outcome(pb.OUTCOME_ROLLED_BACK)
    assert two.destination.state is TreeState.FROZEN
    assert await two.safeties(two.destination) == (UNSAFE, UNSAFE)
    reply = await two.destination.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=True)
    assert reply.outcome == pb.OUTCOME_ROLLED_BACK
    await two.runs_only_on(two.source)
    assert (await two.destination.summary()).outcome == pb.OUTCOME_ROLLED_BACK
    await two.clean()


async def test_an_answer_that_says_rolled_back_forbids_the_copy(two: Two) -> None:
    def fault(act: str) -> None:
        if act == "network.remove":
            two.link.cut = True
            raise OSError(5, "on purpose")

    two.source.machine.fault = fault
    await two.migrate("nothing")
    await two.source.wait_outcome(pb.OUTCOME_ROLLED_BACK)
    two.heal()
    assert await two.safeties(two.destination) == (IMPOSSIBLE, SAFE)
    with pytest.raises(InDoubtError, match="rolled back"):
        await two.destination.client.resolve(two.id, pb.CHOICE_RESUME_HERE, force=True)
    await two.destination.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=False)
    await two.runs_only_on(two.source)
    await two.clean()


@pytest.mark.parametrize("choice", [pb.CHOICE_ABORT_HERE, pb.CHOICE_RESUME_HERE])
async def test_a_person_who_was_wrong_ends_one_of_two_copies(two: Two, choice: pb.Choice.ValueType) -> None:
    """The source's agent died before COMMIT, its CRIU let the tree run on, and somebody let the copy run as well."""
    stopped = asyncio.Event()

    def fault(act: str) -> None:
        if act == "network.remove":
            two.source.machine.agent_alive = lambda: False
            two.link.cut = True
            stopped.set()

    two.source.machine.fault = fault
    await two.migrate("nothing")
    await asyncio.wait_for(stopped.wait(), SOON_SECONDS)
    await two.source.kill()
    two.source.machine.fault = lambda _: None
    await two.destination.client.resolve(two.id, pb.CHOICE_RESUME_HERE, force=True)
    assert (two.source.state, two.destination.state) == (TreeState.RUNNING, TreeState.RUNNING)

    two.heal()
    await two.source.start()
    await two.source.wait_outcome(pb.OUTCOME_IN_DOUBT, "runs on both hosts")
    assert two.id in two.source.machine.fences, "what it says must not reach anybody"
    assert await two.safeties(two.source) == (UNSAFE, SAFE)
    await two.source.kill()
    two.link.cut = True
    await two.source.start()
    await asyncio.sleep(QUIET_SECONDS)
    assert two.id in two.source.machine.fences, "it is known from before, also where nobody answers"
    two.heal()

    reply = await two.source.client.resolve(two.id, choice, force=choice == pb.CHOICE_RESUME_HERE)
    if choice == pb.CHOICE_ABORT_HERE:
        assert reply.outcome == pb.OUTCOME_COMPLETED
        await two.runs_only_on(two.destination)
    else:
        assert reply.outcome == pb.OUTCOME_ROLLED_BACK
        assert two.source.state is TreeState.RUNNING
        assert two.destination.state is TreeState.RUNNING, "which nobody here can end"
    await two.clean()


async def test_nothing_can_be_resolved_while_it_goes_well(two: Two) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()
    two.link.cut_at = "nothing"
    send_images = CutPeer.send_images

    async def slow(peer: CutPeer, migration_id: str, directory: Path) -> int:
        entered.set()
        await go_on.wait()
        return await send_images(peer, migration_id, directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CutPeer, "send_images", slow)
        migrating = asyncio.create_task(two.migrate("Nothing"))
        await asyncio.wait_for(entered.wait(), SOON_SECONDS)
        migrating.cancel()
        assert await two.safeties(two.destination) == (IMPOSSIBLE, IMPOSSIBLE)
        assert await two.safeties(two.source) == (SAFE, SAFE)
        reply = await two.source.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=False)
        assert reply.outcome == pb.OUTCOME_ROLLED_BACK
    assert (await two.source.summary()).error.code == "CancelledByUserError"
    await two.runs_only_on(two.source)
    await two.clean()
