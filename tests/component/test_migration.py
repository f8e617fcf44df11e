"""Migrations between two real agents: what is told, what is done in which order, and what is left when it fails."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from phaul.errors import PhaulError, PreflightError, RestoreError
from phaul.lab.fake_engine import FakeHeldRestore
from phaul.lab.fake_machine import FakeTree, TreeState
from phaul.migration.engine_requests import RestoreRequest
from phaul.migration.facts import HostFacts
from phaul.migration.interfaces import HeldRestore
from phaul.rpc.v1 import agent_pb2
from tests.component.conftest import ADDRESS, PID, Pair, tree


def outcome(events: list[agent_pb2.MigrationEvent]) -> agent_pb2.Finished:
    assert events[-1].WhichOneof("kind") == "finished"
    return events[-1].finished


def phases(events: list[agent_pb2.MigrationEvent]) -> list[str]:
    return [
        agent_pb2.Phase.Name(event.phase_started.phase).removeprefix("PHASE_")
        for event in events
        if event.HasField("phase_started")
    ]


def nothing_left(pair: Pair) -> None:
    for side in (pair.source, pair.destination):
        assert side.machine.fences == {}
        assert not side.rooms.exists() or list(side.rooms.iterdir()) == []


def hang_at_restore(pair: Pair, seconds: float = 30) -> asyncio.Event:
    """Make the destination's restore hang; the event is set once it does."""
    reached = asyncio.Event()

    @asynccontextmanager
    async def slow(_: RestoreRequest) -> AsyncIterator[HeldRestore]:
        reached.set()
        await asyncio.sleep(seconds)
        raise RestoreError("the slow restore was not cancelled")
        yield

    pair.destination.engine.restore = slow  # type: ignore[method-assign, assignment]
    return reached


async def test_moves_memory_and_address(pair: Pair) -> None:
    memory = pair.source.machine.trees[PID].memory
    events = await pair.migrate(ADDRESS)
    report = outcome(events).report
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(events).error
    assert pair.source.machine.state(PID) is TreeState.DEAD
    assert pair.destination.machine.state(PID) is TreeState.RUNNING
    assert pair.destination.machine.trees[PID].memory == memory
    assert pair.source.machine.local == []
    assert pair.destination.machine.local == [ADDRESS]
    assert report.new_pid == PID
    assert report.memory_bytes == len(memory)
    assert 0 < report.freeze_us <= report.downtime_us <= report.total_us
    assert phases(events) == [
        "PREFLIGHT", "PREPARE", "FREEZE", "TRANSFER", "RESTORE", "SWITCHOVER", "COMMIT", "RESUME", "CLEANUP",
    ]  # fmt: skip
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    await asyncio.sleep(0.1)
    nothing_left(pair)


async def test_the_order_that_makes_it_safe(pair: Pair) -> None:
    both: list[str] = []
    pair.source.machine.fault = lambda act: both.append(f"source {act}")
    pair.destination.machine.fault = lambda act: both.append(f"destination {act}")
    await pair.migrate(ADDRESS)
    order = [
        "destination network.fence", "destination network.add", "source network.fence", "source engine.dump",
        "destination engine.restore",
        "source network.remove", "source tree.silence", "source tree.kill",
        "destination copy.run", "destination network.unfence", "destination network.announce",
    ]  # fmt: skip
    assert [act for act in both if act in order][: len(order)] == order


SOURCE_FAULTS = ["rooms.make", "network.fence", "engine.dump", "workload.hold", "network.remove"]
DESTINATION_FAULTS = ["rooms.make", "network.fence", "network.add", "engine.restore"]


@pytest.mark.parametrize(
    ("host", "act"),
    [*(("source", act) for act in SOURCE_FAULTS), *(("destination", act) for act in DESTINATION_FAULTS)],
)
async def test_a_failure_before_commit_rolls_back(pair: Pair, host: str, act: str) -> None:
    def fault(name: str) -> None:
        if name == act:
            raise RestoreError(f"{act} failed on purpose")

    side = pair.source if host == "source" else pair.destination
    side.machine.fault = fault
    events = await pair.migrate(ADDRESS)
    assert outcome(events).outcome in (agent_pb2.OUTCOME_ROLLED_BACK, agent_pb2.OUTCOME_REFUSED)
    assert "failed on purpose" in outcome(events).error.message
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    assert pair.destination.machine.state(PID) is TreeState.DEAD
    assert pair.source.machine.local == [ADDRESS]
    assert pair.destination.machine.local == []
    side.machine.fault = lambda _: None
    nothing_left(pair)
    again = await pair.migrate(ADDRESS)
    assert outcome(again).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(again).error


async def test_a_defect_before_commit_rolls_back_too(pair: Pair) -> None:
    def fault(name: str) -> None:
        if name == "network.remove":
            raise ZeroDivisionError("a bug")

    pair.source.machine.fault = fault
    events = await pair.migrate(ADDRESS)
    assert outcome(events).error.code == "DefectError", outcome(events).error
    assert pair.running_copies() == 1
    assert pair.source.machine.state(PID) is TreeState.RUNNING


async def test_what_cannot_be_undone_is_listed(pair: Pair) -> None:
    def fault(name: str) -> None:
        if name in ("engine.dump", "rooms.release"):
            raise OSError(errno.EIO, f"{name} failed on purpose")

    pair.source.machine.fault = fault
    events = await pair.migrate()
    assert outcome(events).error.code == "LeftoversError"
    assert "rooms.release failed on purpose" in outcome(events).error.detail
    assert pair.source.machine.state(PID) is TreeState.RUNNING


async def test_a_copy_that_will_not_run_is_restored_again(pair: Pair) -> None:
    failures = ["copy.run"]

    def fault(name: str) -> None:
        if name in failures:
            failures.remove(name)
            raise RestoreError("the copy was killed")

    pair.destination.machine.fault = fault
    events = await pair.migrate()
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED
    assert pair.running_copies() == 1


async def test_lost_only_when_the_images_do_not_restore_again_and_they_are_kept(pair: Pair) -> None:
    def fault(name: str) -> None:
        if name == "copy.run":
            raise RestoreError("the copy was killed")

    pair.destination.machine.fault = fault
    events = await pair.migrate()
    assert outcome(events).outcome == agent_pb2.OUTCOME_LOST
    assert outcome(events).error.code == "LostError"
    assert pair.source.machine.state(PID) is TreeState.DEAD
    kept = list(pair.destination.rooms.glob("*/pages-1.img"))
    assert len(kept) == 1
    assert str(kept[0].parent) in outcome(events).error.hint


async def test_cancel_rolls_back(pair: Pair) -> None:
    reached = hang_at_restore(pair)
    migration_id = await pair.source.client.start(pair.request(ADDRESS))
    await asyncio.wait_for(reached.wait(), 10)
    assert pair.source.machine.state(PID) is TreeState.FROZEN
    reply = await pair.source.client.cancel(migration_id)
    assert reply.accepted
    await pair.source.client.cancel(migration_id)  # an impatient person
    events = [event async for event in pair.source.client.watch(migration_id)]
    assert outcome(events).error.code == "CancelledByUserError"
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    assert pair.source.machine.local == [ADDRESS]
    nothing_left(pair)
    late = await pair.source.client.cancel(migration_id)
    assert not late.accepted


async def test_the_same_workload_twice_is_refused(pair: Pair) -> None:
    hang_at_restore(pair)
    first = await pair.source.client.start(pair.request(ADDRESS))
    with pytest.raises(PreflightError, match="already being migrated"):
        await pair.source.client.start(pair.request())
    await pair.source.client.cancel(first)
    assert outcome([event async for event in pair.source.client.watch(first)]).error.code == "CancelledByUserError"


async def test_refused_before_anything_is_touched(pair: Pair) -> None:
    pair.destination.machine.trees[PID] = FakeTree(PID, b"")
    events = await pair.migrate()
    assert outcome(events).outcome == agent_pb2.OUTCOME_REFUSED
    assert outcome(events).error.code == "PreflightError"
    assert phases(events) == ["PREFLIGHT"]
    assert "engine.dump" not in pair.source.machine.acts
    assert "rooms.make" not in pair.destination.machine.acts


async def test_no_agent_there_is_said_so(pair: Pair) -> None:
    request = pair.request()
    request.destination = "127.0.0.1:1"
    migration_id = await pair.source.client.start(request)
    events = [event async for event in pair.source.client.watch(migration_id)]
    assert outcome(events).error.code == "UnreachableError"
    assert pair.source.machine.state(PID) is TreeState.RUNNING


async def test_check_touches_nothing(pair: Pair) -> None:
    report = await pair.source.client.check(pair.request(ADDRESS))
    assert report.workload.root_pid == PID
    assert report.destination.host_name == "b"
    assert list(report.problems) == []
    assert set(pair.source.machine.acts) == {"workload.inspect"}
    assert set(pair.destination.machine.acts) == {"workload.observe"}


async def test_both_hosts_remember(pair: Pair) -> None:
    await pair.migrate()
    (here,) = await pair.source.client.list_migrations()
    (there,) = await pair.destination.client.list_migrations()
    assert here.migration_id == there.migration_id
    assert (here.role, there.role) == (agent_pb2.ROLE_SOURCE, agent_pb2.ROLE_DESTINATION)
    assert here.outcome == there.outcome == agent_pb2.OUTCOME_COMPLETED
    assert here.report.downtime_us > 0
    late = [event async for event in pair.destination.client.watch(there.migration_id)]
    assert outcome(late).outcome == agent_pb2.OUTCOME_COMPLETED


async def test_many_at_once(pair: Pair) -> None:
    pids = range(5000, 5006)
    for pid in pids:
        pair.source.machine.trees[pid] = tree(pid, pages=300)
    ids = [await pair.source.client.start(pair.request(pid=pid)) for pid in pids]
    for migration_id in ids:
        events = [event async for event in pair.source.client.watch(migration_id)]
        assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(events).error
    assert all(pair.destination.machine.state(pid) is TreeState.RUNNING for pid in pids)


async def test_an_agent_off_loopback_needs_insecure(pair: Pair) -> None:
    request = pair.request()
    request.destination = "192.0.2.1"
    with pytest.raises(PhaulError, match="may not connect to") as caught:
        await pair.source.client.start(request)
    assert caught.value.exit_status == 12


async def test_a_flipped_bit_is_found_named_and_rolled_back(pair: Pair) -> None:
    source = pair.source.machine.trees[PID]
    flipped = bytearray(source.memory)
    flipped[len(flipped) // 2] ^= 0x10
    source.damaged = bytes(flipped)
    events = await pair.migrate(ADDRESS)
    assert outcome(events).error.code == "TransferError"
    assert f"pagemap-{PID}.img" in outcome(events).error.message
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    assert pair.destination.machine.state(PID) is TreeState.DEAD
    nothing_left(pair)


async def test_past_a_deadline_it_is_rolled_back(pair: Pair) -> None:
    for limit in ("timeout_seconds", "freeze_timeout_seconds"):
        hang_at_restore(pair)
        request = pair.request(ADDRESS)
        setattr(request, limit, 0.3)
        migration_id = await pair.source.client.start(request)
        events = [event async for event in pair.source.client.watch(migration_id)]
        assert outcome(events).error.code == "DeadlineError", outcome(events)
        assert pair.source.machine.state(PID) is TreeState.RUNNING
        nothing_left(pair)


async def test_what_does_not_fit_beside_others_is_refused(pair: Pair) -> None:
    hang_at_restore(pair)
    pair.source.machine.trees[5001] = tree(5001)
    first = await pair.source.client.start(pair.request())
    await asyncio.sleep(0.2)
    small = dataclasses.replace(await pair.destination.server._host.describe(), memory_available_bytes=200 << 20)

    async def describe() -> HostFacts:
        return small

    arrivals = pair.destination.server._arrivals
    arrivals._host = dataclasses.replace(arrivals._host, describe=describe)
    second = await pair.source.client.start(pair.request(pid=5001))
    events = [event async for event in pair.source.client.watch(second)]
    assert "not enough memory" in outcome(events).error.message
    assert pair.source.machine.state(5001) is TreeState.RUNNING
    await pair.source.client.cancel(first)
    assert outcome([event async for event in pair.source.client.watch(first)]).error.code == "CancelledByUserError"


async def test_a_copy_that_runs_is_not_killed_because_its_criu_was(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """CRIU let the copy go and was killed before it said so: what the copy has done since is in no image."""
    let_go = FakeHeldRestore.run

    async def run(held: FakeHeldRestore, open_network: Callable[[], Awaitable[None]]) -> None:
        await let_go(held, open_network)
        raise RestoreError("CRIU ended without an answer")

    monkeypatch.setattr(FakeHeldRestore, "run", run)
    events = await pair.migrate(ADDRESS)
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(events).error
    assert pair.destination.machine.acts.count("engine.restore") == 1
    assert pair.destination.machine.state(PID) is TreeState.RUNNING
    assert pair.destination.machine.fences == {}
