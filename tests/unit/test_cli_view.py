"""The fold of events into a `MigrationView`: its invariants, whatever comes in whatever order."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.cli.view import USUAL_PHASES, MigrationView, PhaseState, advance, outcome_name, phase_name
from phaul.errors import RestoreError, Where
from phaul.rpc.v1 import agent_pb2 as pb
from phaul.rpc.v1 import facts_pb2 as facts
from tests.unit.fake_agent import COMPLETED, MIB, ROLLED_BACK, event

SIZES = st.integers(0, 2**50)
KINDS = st.one_of(
    st.builds(lambda number: {"phase_started": pb.PhaseStarted(phase=number)}, st.sampled_from(pb.Phase.values())),
    st.builds(
        lambda done, total, rate: {"progress": pb.Progress(done_bytes=done, total_bytes=total, bytes_per_second=rate)},
        SIZES,
        SIZES,
        SIZES,
    ),
    st.builds(lambda text: {"warning": pb.Warning(message=text)}, st.text(max_size=8)),
    st.builds(
        lambda pid, memory: {"started": pb.Started(root_pid=pid, command="c", processes=1, memory_bytes=memory)},
        st.integers(1, 2**22),
        SIZES,
    ),
    st.builds(lambda outcome: {"finished": pb.Finished(outcome=outcome)}, st.sampled_from(pb.Outcome.values())),
    st.just({}),
)


@st.composite
def streams(draw: st.DrawFn) -> list[pb.MigrationEvent]:
    """Events with ascending numbers; the clock of the host may be set back meanwhile."""
    kinds = draw(st.lists(KINDS, max_size=20))
    return [event(number, draw(st.integers(-1000, 10_000)), **kind) for number, kind in enumerate(kinds, 1)]


def views(events: list[pb.MigrationEvent]) -> list[MigrationView]:
    """Every view on the way, the empty one first."""
    found = [MigrationView()]
    for each in events:
        found.append(advance(found[-1], each))
    return found


def test_completed_migration() -> None:
    view = reduce(advance, COMPLETED, MigrationView())
    assert (view.outcome, view.command, view.processes, view.connections) == ("completed", "redis-server", 1, 1)
    assert tuple(phase.name for phase in view.phases) == USUAL_PHASES
    assert {phase.state for phase in view.phases} == {PhaseState.DONE}
    assert view.elapsed_us(0) == 1_030_000
    assert view.warnings == ("2 connections waited in a listen queue",)
    assert view.report is not None
    assert view.report.downtime_us == 312_400


def test_failed_migration_marks_the_phase_and_keeps_the_error() -> None:
    view = reduce(advance, ROLLED_BACK, MigrationView())
    assert view.phases[-1].name == "restore"
    assert view.phases[-1].state is PhaseState.FAILED
    assert isinstance(view.error, RestoreError)
    assert view.error.where is Where.SOURCE
    assert view.error.notes == ("the address could not be taken back from b.example: no answer",)


def test_memory_is_all_there_once_the_next_phase_begins() -> None:
    """The total is an estimate of preflight; a bar that stays at 74 % would be a lie."""
    at_freeze = reduce(advance, COMPLETED[:7], MigrationView())
    assert (at_freeze.done_bytes, at_freeze.total_bytes) == (200 * MIB, 271 * MIB)
    assert at_freeze.eta_seconds == pytest.approx(71 / 1200)
    at_transfer = advance(at_freeze, COMPLETED[7])
    assert (at_transfer.share, at_transfer.eta_seconds, at_transfer.memory_sent) == (1.0, None, True)


def test_pre_copy_is_no_pending_phase_but_is_shown_when_it_takes_place() -> None:
    assert "precopy" not in MigrationView().pending
    view = advance(MigrationView(), event(1, 0, phase_started=pb.PhaseStarted(phase=pb.PHASE_PRECOPY)))
    assert [phase.name for phase in view.phases] == ["precopy"]


def test_warnings_of_the_report_are_added_once() -> None:
    finished = event(
        2,
        5,
        finished=pb.Finished(outcome=pb.OUTCOME_COMPLETED, report=pb.MigrationReport(warnings=["known", "late"])),
    )
    view = advance(advance(MigrationView(), event(1, 0, warning=pb.Warning(message="known"))), finished)
    assert view.warnings == ("known", "late")


def test_numbers_of_a_newer_agent_have_a_name() -> None:
    assert phase_name(99) == "phase 99"  # type: ignore[arg-type]  # what a newer agent may send
    assert outcome_name(99) == "outcome 99"  # type: ignore[arg-type]
    view = advance(MigrationView(), event(1, 0, phase_started=pb.PhaseStarted(phase=99)))  # type: ignore[arg-type]
    assert view.phases[0].name == "phase 99"


def test_an_error_of_a_newer_agent_becomes_a_defect_that_names_it() -> None:
    info = facts.ErrorInfo(code="NewError", message="no")
    view = advance(MigrationView(), event(1, 0, finished=pb.Finished(outcome=pb.OUTCOME_LOST, error=info)))
    assert view.error is not None
    assert view.error.message == "NewError: no"


@given(streams())
def test_invariants(events: list[pb.MigrationEvent]) -> None:
    for before, after in pairwise(views(events)):
        running = [phase for phase in after.phases if phase.state is PhaseState.RUNNING]
        assert len(running) <= (0 if after.outcome else 1)
        assert after.done_bytes >= before.done_bytes
        assert after.share is None or 0 <= after.share <= 1
        assert after.eta_seconds is None or after.eta_seconds >= 0
        assert all(phase.elapsed_us(0) >= 0 for phase in after.phases)
        assert after.elapsed_us(0) >= 0
        assert not before.outcome or after is before


@given(st.lists(st.tuples(SIZES, SIZES), min_size=2, max_size=6))
def test_the_bar_never_goes_back(reports: list[tuple[int, int]]) -> None:
    """Figures of the kernel's socket buffers may: what was counted as sent can be counted lower later."""
    stream = [
        event(number, number, progress=pb.Progress(done_bytes=done, total_bytes=total))
        for number, (done, total) in enumerate(reports, 1)
    ]
    for before, after in pairwise(views(stream)):
        assert after.total_bytes >= after.done_bytes >= before.done_bytes


@given(streams(), st.data())
def test_seeing_events_again_changes_nothing(events: list[pb.MigrationEvent], data: st.DataObject) -> None:
    """A stream that is opened again begins with the first event."""
    cut = data.draw(st.integers(0, len(events)))
    assert reduce(advance, [*events[:cut], *events], MigrationView()) == reduce(advance, events, MigrationView())


@given(streams())
def test_pending_phases_follow_those_that_began(events: list[pb.MigrationEvent]) -> None:
    view = replace(views(events)[-1], outcome="")
    assert not {phase.name for phase in view.phases} & set(view.pending)
    assert list(view.pending) == [name for name in USUAL_PHASES if name in view.pending]
