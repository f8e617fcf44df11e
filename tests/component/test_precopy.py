"""Pre-copy between two real agents: rounds over one page channel, what is decided after each, and every way out."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence

import pytest

from phaul.errors import DumpError
from phaul.lab import fake_engine
from phaul.lab.fake_engine import MEMORY_ADDRESS, FakeEngine
from phaul.lab.fake_machine import PAGE_BYTES, FakeTree, TreeState
from phaul.lab.fakes import FakeWorkload
from phaul.migration.engine_requests import PreDumped, PreDumpRequest
from phaul.migration.page_images import Ahead, Block, HashedImage
from phaul.rpc.v1 import agent_pb2, facts_pb2
from tests.component.conftest import PID, Pair, tree
from tests.component.test_migration import nothing_left, outcome, phases


def request(pair: Pair, **options: object) -> facts_pb2.MigrationRequest:
    """Ask for pre-copy, which is not chosen for a tree as small as these."""
    wanted = pair.request()
    wanted.mode = facts_pb2.MODE_PRE_COPY
    for name, value in options.items():
        setattr(wanted, name, value)
    return wanted


async def migrate(pair: Pair, **options: object) -> list[agent_pb2.MigrationEvent]:
    migration_id = await pair.source.client.start(request(pair, **options))
    return [event async for event in pair.source.client.watch(migration_id)]


def rounds(events: list[agent_pb2.MigrationEvent]) -> list[agent_pb2.RoundFinished]:
    return [event.round_finished for event in events if event.HasField("round_finished")]


def writes(*pages: int) -> object:
    """A workload that writes these pages whenever a round is under way."""

    def write(tree: FakeTree) -> None:
        memory = bytearray(tree.memory)
        for page in pages:
            memory[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = os.urandom(PAGE_BYTES)
        tree.memory = bytes(memory)

    return write


def grows(tree: FakeTree) -> None:
    """A workload that takes another page whenever a round is under way."""
    tree.memory += os.urandom(PAGE_BYTES)


async def test_what_was_written_between_the_rounds_arrives(pair: Pair) -> None:
    there = pair.source.machine.trees[PID]
    there.while_sent = writes(3, 4, 699)  # type: ignore[assignment]
    events = await migrate(pair)
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(events).error
    assert phases(events)[:4] == ["PREFLIGHT", "PREPARE", "PRECOPY", "FREEZE"]
    assert pair.destination.machine.trees[PID].memory == there.memory
    report = outcome(events).report
    first, second = rounds(events)[:2]
    assert (first.page_bytes, second.page_bytes) == (700 * PAGE_BYTES, 3 * PAGE_BYTES)
    assert report.mode == facts_pb2.MODE_PRE_COPY
    assert report.rounds == len(rounds(events)) >= 2
    assert report.memory_bytes == 700 * PAGE_BYTES
    assert 0 < report.predicted_downtime_us <= 500_000
    (chosen,) = [event.mode_chosen for event in events if event.HasField("mode_chosen")]
    assert (chosen.mode, chosen.reason) == (facts_pb2.MODE_PRE_COPY, "as asked for")
    (to, (learnt,)), (back_to, (told,)) = (
        *pair.source.machine.outcomes.items(),
        *pair.destination.machine.outcomes.items(),
    )
    assert (to, back_to) == (pair.destination.machine.name, pair.source.machine.name)
    assert told == {**learnt, "back": True}, "the way back is predicted by it as well"
    nothing_left(pair)


async def test_memory_that_is_new_in_every_round_arrives(pair: Pair) -> None:
    there = pair.source.machine.trees[PID]
    there.while_sent = grows
    events = await migrate(pair, max_downtime_seconds=0.000_001, max_rounds=4, on_stall=facts_pb2.ON_STALL_FREEZE)
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(events).error
    assert len(pair.destination.machine.trees[PID].memory) > 702 * PAGE_BYTES
    assert pair.destination.machine.trees[PID].memory == there.memory


def numbers(address: int, pages: int) -> range:
    """Which pages of the fake tree's memory a run has."""
    first = (address - MEMORY_ADDRESS) // PAGE_BYTES
    return range(first, first + pages)


async def test_what_was_seen_to_be_right_is_not_hashed_again_in_the_freeze(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[list[set[int]]] = []
    differing = FakeWorkload.differing

    async def seen(
        self: FakeWorkload, pids: Sequence[int], images: Sequence[HashedImage], ahead: Ahead
    ) -> tuple[Block, ...]:
        compared.append([{page for run in image.runs for page in numbers(*run)} for image in images])
        return await differing(self, pids, images, ahead)

    monkeypatch.setattr(FakeWorkload, "differing", seen)
    pair.source.machine.trees[PID].while_sent = writes(3, 4, 699)  # type: ignore[assignment]
    assert outcome(await migrate(pair)).outcome == agent_pb2.OUTCOME_COMPLETED
    first, second, *_, last = compared
    assert first == [set(range(700))]
    arrived, again = second
    assert arrived == {3, 4, 699}, "they were written after the first round had sent them"
    assert again == {*range(32 - MEMORY_ADDRESS // PAGE_BYTES % 32), *range(688, 699)} - arrived, "with their blocks"
    assert last == [{3, 4, 699}]


async def test_a_bit_that_flips_in_a_round_is_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    send, calls = fake_engine.send_memory, itertools.count()

    def damaging(fd: int, tree: FakeTree, memory: bytes, since: bytes | None) -> int:
        if next(calls) == 0:
            flipped = bytearray(memory)
            flipped[333 * PAGE_BYTES + 1] ^= 4
            memory = bytes(flipped)
        return send(fd, tree, memory, since)

    monkeypatch.setattr(fake_engine, "send_memory", damaging)
    monkeypatch.setattr(pair.source.machine.trees[PID], "while_sent", writes(3))
    events = await migrate(pair)
    assert (outcome(events).outcome, outcome(events).error.code) == (agent_pb2.OUTCOME_ROLLED_BACK, "TransferError")
    assert "damaged" in outcome(events).error.message
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    nothing_left(pair)


async def test_without_tracking_it_is_refused(pair: Pair) -> None:
    async def none() -> object:
        return described

    described = (await pair.source.server._host.engine.describe()).__class__(criu_version="4.2.1", criu_path="fake")
    pair.source.engine.describe = none  # type: ignore[method-assign, assignment]
    events = await migrate(pair)
    assert outcome(events).outcome == agent_pb2.OUTCOME_REFUSED
    assert "cannot track" in outcome(events).error.message


async def test_what_does_not_converge_is_refused_unharmed(pair: Pair) -> None:
    pair.source.machine.trees[PID].while_sent = writes(*range(600))  # type: ignore[assignment]
    events = await migrate(pair, max_downtime_seconds=0.000_001)
    error = outcome(events).error
    assert (outcome(events).outcome, error.code) == (agent_pb2.OUTCOME_ROLLED_BACK, "DowntimeError")
    assert "FREEZE" not in phases(events)
    assert "would stand still for about" in error.message
    assert "max-downtime" in error.hint
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    assert "tree.resume" not in pair.source.machine.acts, "it never stood still"
    nothing_left(pair)


async def test_a_throttled_workload_gets_its_quota_back(pair: Pair) -> None:
    machine = pair.source.machine
    machine.trees[PID].while_sent = writes(*range(600))  # type: ignore[assignment]
    # Just more than what the fake engine's rounds say of the fixed costs: pages could fit, if there were fewer.
    events = await migrate(pair, max_downtime_seconds=0.0123, on_stall=facts_pb2.ON_STALL_THROTTLE)
    assert outcome(events).error.code == "DowntimeError"
    assert machine.acts.count("throttle.slow_to") >= 2
    assert machine.acts.index("throttle.look") < machine.acts.index("engine.pre_dump"), "refused before anything goes"
    assert machine.speed_percent == 100


async def test_a_channel_that_breaks_is_opened_again(pair: Pair) -> None:
    machine = pair.source.machine
    broken = 0

    def fault(act: str) -> None:
        nonlocal broken
        if act == "engine.pre_dump" and machine.acts.count(act) == 2:
            broken += 1
            raise DumpError("the page channel broke on purpose")

    machine.fault = fault
    machine.trees[PID].while_sent = writes(1, 2)  # type: ignore[assignment]
    events = await migrate(pair)
    assert broken == 1
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(events).error
    assert [each.page_bytes // PAGE_BYTES for each in rounds(events)][:3] == [700, 700, 2]
    assert [each.number for each in rounds(events)][:3] == [1, 1, 2]
    report = outcome(events).report
    assert report.sent_bytes >= 2 * 700 * PAGE_BYTES, "what went over the channel that broke was sent, too"
    assert report.wire_bytes >= report.sent_bytes
    assert "begin anew" in next(event.warning.message for event in events if event.HasField("warning"))
    assert pair.destination.machine.trees[PID].memory == machine.trees[PID].memory
    nothing_left(pair)


@pytest.mark.parametrize("at", [1, 2])
async def test_a_round_that_never_succeeds_rolls_back(pair: Pair, at: int) -> None:
    def fault(act: str) -> None:
        if act == "engine.pre_dump" and pair.source.machine.acts.count(act) >= at:
            raise DumpError("CRIU could not pre-dump the workload")

    pair.source.machine.fault = fault
    events = await migrate(pair)
    assert (outcome(events).outcome, outcome(events).error.code) == (agent_pb2.OUTCOME_ROLLED_BACK, "DumpError")
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    nothing_left(pair)


async def test_a_deadline_ends_the_rounds(pair: Pair) -> None:
    pair.source.machine.trees[PID].while_sent = writes(*range(600))  # type: ignore[assignment]
    events = await migrate(pair, max_downtime_seconds=0.000_001, timeout_seconds=0.3, max_rounds=1000)
    assert outcome(events).outcome == agent_pb2.OUTCOME_ROLLED_BACK
    assert outcome(events).error.code in ("DowntimeError", "DeadlineError")
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    nothing_left(pair)


async def test_small_workloads_are_not_copied_in_rounds(pair: Pair) -> None:
    pair.source.machine.trees[PID] = tree(pages=4)
    events = await migrate(pair, mode=facts_pb2.MODE_AUTO)
    assert outcome(events).report.mode == facts_pb2.MODE_STOP_AND_COPY
    assert "PRECOPY" not in phases(events)


async def test_a_throttled_workload_is_frozen_at_full_speed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = pair.source.machine
    machine.trees[PID].while_sent = writes(*range(600))  # type: ignore[assignment]
    speeds: list[tuple[int, int]] = []
    pre_dump = FakeEngine.pre_dump

    async def noted(self: FakeEngine, request: PreDumpRequest) -> PreDumped:
        before = machine.speed_percent
        done = await pre_dump(self, request)
        for _ in range(1000):  # until somebody has seen that memory was on its way
            if machine.acts.count("throttle.slow_to") == 0 or machine.speed_percent < 100:
                break
            await asyncio.sleep(0.005)
        speeds.append((before, machine.speed_percent))
        return done

    monkeypatch.setattr(FakeEngine, "pre_dump", noted)
    events = await migrate(pair, max_downtime_seconds=0.0123, on_stall=facts_pb2.ON_STALL_THROTTLE)
    assert outcome(events).error.code == "DowntimeError"
    assert {before for before, _ in speeds} == {100}
    assert min(after for _, after in speeds) < 100
    assert machine.speed_percent == 100
