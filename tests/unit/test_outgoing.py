"""Who watches a migration sees all of it: from the first event, in order, however late, slow or many they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from phaul.agent.history import History
from phaul.agent.outgoing import KINDS, Outgoing, outcome_of
from phaul.errors import (
    CancelledByUserError,
    DefectError,
    InDoubtError,
    LeftoversError,
    LostError,
    NotTrustedError,
    PhaulError,
    PreflightError,
    TransferError,
    UnreachableError,
    UsageError,
)
from phaul.migration.events import Event, Finished, Outcome, Phase, PhaseStarted, Progress, Role, Started, Warning
from phaul.rpc.v1 import agent_pb2

EVENTS: tuple[Event, ...] = (
    Started(7, "", "b:7428"),
    PhaseStarted(Phase.PREFLIGHT),
    Started(7, "redis-server", "b:7428", processes=1, memory_bytes=100, connections=1),
    Warning("careful"),
    PhaseStarted(Phase.FREEZE),
    *(Progress(Phase.FREEZE, done, 100, 1000) for done in range(0, 101, 10)),
    Finished(Outcome.ROLLED_BACK, error=TransferError("it broke")),
)


@pytest.fixture
def outgoing(tmp_path: Path) -> Outgoing:
    history = History(tmp_path)
    history.begin("ab12", Role.SOURCE, "b:7428", 7, "")
    return Outgoing("ab12", history)


async def collect(outgoing: Outgoing, pause_seconds: float = 0) -> list[agent_pb2.MigrationEvent]:
    seen = []
    async with asyncio.timeout(10):
        async for event in outgoing.watch():
            seen.append(event)
            await asyncio.sleep(pause_seconds)
    return seen


def is_whole(seen: list[agent_pb2.MigrationEvent]) -> None:
    assert [event.sequence for event in seen] == list(range(1, len(EVENTS) + 1))
    assert [event.WhichOneof("kind") for event in seen] == [KINDS[type(event).__name__] for event in EVENTS]
    assert {event.migration_id for event in seen} == {"ab12"}
    assert [event.unix_us for event in seen] == sorted(event.unix_us for event in seen)
    assert seen[-1].finished.error.code == "TransferError"
    assert seen[4].phase_started.phase == agent_pb2.PHASE_FREEZE


async def tell(outgoing: Outgoing, events: tuple[Event, ...] = EVENTS) -> None:
    for event in events:
        outgoing.emit(event)
        await asyncio.sleep(0)
    outgoing.finish()


async def test_watchers_early_late_and_slow_all_see_everything(outgoing: Outgoing) -> None:
    early = [asyncio.create_task(collect(outgoing, pause)) for pause in (0, 0.002)]
    await asyncio.sleep(0)
    telling = asyncio.create_task(tell(outgoing))
    for _ in range(6):
        await asyncio.sleep(0)
    late = asyncio.create_task(collect(outgoing))
    for seen in await asyncio.gather(*early, late):
        is_whole(seen)
    await telling
    is_whole(await collect(outgoing))


async def test_a_watcher_waits_for_the_end(outgoing: Outgoing) -> None:
    watching = asyncio.create_task(collect(outgoing))
    await asyncio.sleep(0.01)
    outgoing.emit(EVENTS[0])  # wakes it
    await asyncio.sleep(0.02)
    assert not watching.done()
    outgoing.finish()
    assert len(await watching) == 1


async def test_a_watcher_who_leaves_is_forgotten_and_disturbs_nobody(outgoing: Outgoing) -> None:
    leaving = asyncio.create_task(collect(outgoing))
    await asyncio.sleep(0.01)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert not outgoing._wakers
    staying = asyncio.create_task(collect(outgoing))
    await tell(outgoing)
    is_whole(await staying)
    assert not outgoing._wakers


async def test_a_watcher_with_nothing_to_see(outgoing: Outgoing) -> None:
    outgoing.finish()
    assert await collect(outgoing) == []


async def test_the_history_follows(outgoing: Outgoing) -> None:
    await tell(outgoing)
    record = outgoing._history.get("ab12")
    assert (record.command, record.phase) == ("redis-server", agent_pb2.PHASE_FREEZE)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (PreflightError, Outcome.REFUSED),
        (UnreachableError, Outcome.REFUSED),
        (NotTrustedError, Outcome.REFUSED),
        (UsageError, Outcome.REFUSED),
        (TransferError, Outcome.ROLLED_BACK),
        (CancelledByUserError, Outcome.ROLLED_BACK),
        (LeftoversError, Outcome.ROLLED_BACK),
        (DefectError, Outcome.ROLLED_BACK),
        (InDoubtError, Outcome.IN_DOUBT),
        (LostError, Outcome.LOST),
    ],
)
def test_how_a_migration_stands_after_an_error(error: type[PhaulError], outcome: Outcome) -> None:
    assert outcome_of(error("x")) is outcome
