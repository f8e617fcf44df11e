"""What must be undone, and where the time went."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import TransferError
from phaul.migration.events import Phase, PhaseDuration, Role, Step
from phaul.migration.timeline import Timeline
from phaul.migration.undo import UndoStack


class FakeClock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now_us = 1_000

    def monotonic_us(self) -> int:
        return self.now_us

    def unix_us(self) -> int:
        return self.now_us

    async def sleep(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)


class Undo:
    """Notes that it ran, and fails if it shall."""

    def __init__(self, done: list[int], number: int, fails: bool) -> None:
        self._done, self._number, self._fails = done, number, fails

    async def __call__(self) -> None:
        await asyncio.sleep(0)
        self._done.append(self._number)
        if self._fails:
            raise TransferError(f"no {self._number}")


@given(st.lists(st.booleans(), max_size=8))
def test_every_undo_runs_once_latest_first_whatever_fails(failing: list[bool]) -> None:
    stack, done = UndoStack(), list[int]()
    for number, fails in enumerate(failing):
        stack.add(f"thing {number}", Undo(done, number, fails))
    assert bool(stack) is bool(failing)
    leftovers = asyncio.run(stack.unwind())
    assert done == list(reversed(range(len(failing))))
    assert leftovers == tuple(f"thing {number}: no {number}" for number in done if failing[number])
    assert not stack
    assert asyncio.run(stack.unwind()) == ()
    assert len(done) == len(failing)


async def test_what_stands_for_good_is_not_undone() -> None:
    stack, done = UndoStack(), list[int]()
    stack.add("thing", Undo(done, 1, False))
    stack.forget()
    assert not stack
    assert await stack.unwind() == ()
    assert done == []


async def test_an_undo_that_is_cancelled_stays_undone_once_and_the_rest_can_go_on() -> None:
    stack, done = UndoStack(), list[int]()

    async def hang() -> None:
        done.append(2)
        await asyncio.sleep(3600)

    stack.add("first", Undo(done, 1, False))
    stack.add("second", hang)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await stack.unwind()
    assert await stack.unwind() == ()
    assert done == [2, 1]


def test_phases_follow_each_other_without_a_gap() -> None:
    clock = FakeClock()
    timeline = Timeline(clock)
    assert timeline.phases() == ()
    for phase, duration_us in ((Phase.PREFLIGHT, 5), (Phase.PREPARE, 7), (Phase.FREEZE, 11)):
        timeline.enter(phase)
        clock.now_us += duration_us
    assert timeline.phases() == (
        PhaseDuration(Phase.PREFLIGHT, 5),
        PhaseDuration(Phase.PREPARE, 7),
        PhaseDuration(Phase.FREEZE, 11),
    )
    assert sum(each.duration_us for each in timeline.phases()) == clock.now_us - timeline.started_us


@given(st.lists(st.tuples(st.sampled_from(Phase), st.integers(0, 1000)), max_size=10))
def test_phases_add_up_to_the_whole(entered: list[tuple[Phase, int]]) -> None:
    clock = FakeClock()
    timeline = Timeline(clock)
    for phase, duration_us in entered:
        timeline.enter(phase)
        clock.now_us += duration_us
    assert [(each.phase, each.duration_us) for each in timeline.phases()] == entered


@pytest.mark.parametrize(("running_for_us", "downtime_us"), [(0, 100), (30, 70), (1_000_000, 40)])
def test_the_downtime_is_over_when_the_copy_runs(running_for_us: int, downtime_us: int) -> None:
    """Not when the answer comes; and not before the tree was killed, whatever the destination says."""
    clock = FakeClock()
    timeline = Timeline(clock)
    timeline.frozen_us = clock.now_us
    clock.now_us += 40
    timeline.killed_us = clock.now_us
    clock.now_us += 60
    timeline.resume(running_for_us)
    assert timeline.resumed_us - timeline.frozen_us == downtime_us
    assert timeline.steps() == (Step("resume", 40, downtime_us - 40, Role.DESTINATION),)


def test_steps_count_from_the_freeze_by_their_start() -> None:
    clock = FakeClock()
    timeline = Timeline(clock)
    timeline.add_step("before the freeze", clock.now_us, 3, Role.SOURCE)
    assert timeline.steps() == (), "there was no freeze"
    clock.now_us += 10
    timeline.frozen_us = clock.now_us
    with timeline.step("dump"):
        clock.now_us += 20
        timeline.add_step("restore", clock.now_us - 5, 100, Role.DESTINATION)
    with pytest.raises(TransferError), timeline.step("fails", Role.DESTINATION):
        clock.now_us += 1
        raise TransferError("x")
    assert timeline.steps() == (
        Step("dump", 0, 20, Role.SOURCE),
        Step("restore", 15, 100, Role.DESTINATION),
        Step("fails", 20, 1, Role.DESTINATION),
    )
