"""What a person may decide: every situation there can be, and some that there cannot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest

from phaul.migration.events import Role
from phaul.migration.journal import Mark, Record
from phaul.migration.recovery import (
    Choice,
    DestinationAct,
    DestinationTruth,
    SourceAct,
    SourceTruth,
    Tree,
    Word,
    decide_destination,
    decide_source,
    source_word,
)
from phaul.migration.resolution import (
    DoubtReport,
    Safety,
    Situation,
    describe_record,
    in_doubt,
    options,
    stands,
)

SOURCE_MARKS = (Mark.PLANNED, Mark.FREEZING, Mark.SWITCHING, Mark.COMMIT, Mark.RESUMED, Mark.ENDED)
DESTINATION_MARKS = (Mark.RESERVED, Mark.HELD, Mark.RESUMING, Mark.RUNNING, Mark.ENDED)
TREES = (None, *Tree)


def resolved(choice: Choice, word: Word = Word.NO_ANSWER) -> Record:
    return Record(Mark.RESOLVED, {"choice": str(choice), "word": str(word)})


def histories(marks: Sequence[Mark], undo: Mark) -> Iterator[tuple[Record, ...]]:
    """Every beginning of a journal, also rolled back from there, also decided by a person."""
    for length in range(len(marks) + 1):
        begun = tuple(Record(mark, {"outcome": "completed"}) for mark in marks[:length])
        for tail in ((), (Record(undo),), (Record(undo), Record(Mark.ENDED, {"outcome": "rolled_back"}))):
            decisions = ((), *((resolved(choice, word),) for choice in Choice for word in Word))
            for decision in decisions:
                yield (*begun, *decision, *tail)


def situations(role: Role) -> Iterator[Situation]:
    marks, undo = {
        Role.SOURCE: (SOURCE_MARKS, Mark.ROLLING_BACK),
        Role.DESTINATION: (DESTINATION_MARKS, Mark.ABORTING),
    }[role]
    for records in histories(marks, undo):
        for tree, at_work, complete, other in itertools.product(TREES, (True, False), (True, False), Word):
            yield Situation(role, records, tree, at_work, complete, other)


def has(situation: Situation, mark: Mark) -> bool:
    return any(record.mark is mark for record in situation.records)


@pytest.mark.parametrize("role", Role)
def test_every_situation_has_both_choices_with_a_reason(role: Role) -> None:
    for situation in situations(role):
        found = options(situation)
        assert [option.choice for option in found] == [Choice.RESUME_HERE, Choice.ABORT_HERE]
        for option in found:
            assert option.reason
            assert bool(option.danger) == (option.safety is Safety.UNSAFE), situation
        assert stands(situation)
        if has(situation, Mark.ENDED):
            assert {option.safety for option in found} == {Safety.IMPOSSIBLE}


def test_a_copy_runs_safely_only_on_the_source_s_word() -> None:
    seen = set()
    for situation in situations(Role.DESTINATION):
        resume, _ = options(situation)
        seen.add(resume.safety)
        if resume.safety is Safety.SAFE:
            assert situation.other is Word.COMMITTED, situation
        if resume.safety is not Safety.IMPOSSIBLE:
            assert has(situation, Mark.HELD)
            assert situation.at_work or situation.images_complete
            assert situation.other in (Word.COMMITTED, Word.NO_ANSWER, Word.UNKNOWN), situation
            assert not has(situation, Mark.RUNNING)
        if resume.safety is Safety.UNSAFE:
            assert "two copies" in resume.danger
    assert seen == set(Safety)


def test_the_last_copy_is_never_thrown_away_as_safe() -> None:
    seen = set()
    for situation in situations(Role.DESTINATION):
        _, abort = options(situation)
        seen.add(abort.safety)
        restorable = situation.at_work or situation.images_complete
        if (
            abort.safety is Safety.SAFE
            and has(situation, Mark.HELD)
            and restorable
            and not has(situation, Mark.ABORTING)
        ):
            assert situation.other is Word.ABORTED, situation
        if situation.other is Word.COMMITTED and has(situation, Mark.HELD) and restorable:
            assert abort.safety is not Safety.UNSAFE, "not even with --yes"
        if abort.safety is not Safety.IMPOSSIBLE:
            assert not has(situation, Mark.RUNNING)
            assert situation.other is not Word.UNDECIDED or not restorable or has(situation, Mark.ABORTING)
    assert seen == set(Safety)


def test_a_dead_tree_cannot_run_on_the_source() -> None:
    for situation in situations(Role.SOURCE):
        resume, abort = options(situation)
        before_commit = situation.at_work and not has(situation, Mark.COMMIT)
        if situation.tree in (Tree.DEAD, Tree.ANOTHER_BOOT) and not before_commit:
            assert resume.safety is Safety.IMPOSSIBLE, situation
            if situation.other is Word.NO_ANSWER:
                assert abort.safety is not Safety.SAFE, situation
            if situation.other in (Word.HELD, Word.RESERVED):
                assert abort.safety is Safety.IMPOSSIBLE, "it answers, so it will be told"


def test_the_only_living_tree_is_never_given_up_as_safe() -> None:
    for situation in situations(Role.SOURCE):
        resume, abort = options(situation)
        if situation.tree is Tree.ALIVE and not situation.at_work:
            if abort.safety is Safety.SAFE:
                assert situation.other is Word.RUNNING, situation
            if situation.other is Word.RUNNING:
                assert resume.safety is not Safety.SAFE, situation


def test_before_commit_the_coordinator_cancels() -> None:
    planned = (Record(Mark.PLANNED), Record(Mark.FREEZING))
    for other in Word:
        found = options(Situation(Role.SOURCE, planned, Tree.HELD, True, False, other))
        assert {option.safety for option in found} == {Safety.SAFE}
        assert all("cancel" in option.reason for option in found)


# --- what recovery makes of a decision


HELD = (Record(Mark.RESERVED), Record(Mark.HELD))
COMMITTED = (Record(Mark.PLANNED), Record(Mark.FREEZING), Record(Mark.SWITCHING), Record(Mark.COMMIT))


@pytest.mark.parametrize(
    ("word", "after_resume", "after_abort", "undecided"),
    [
        (None, DestinationAct.ASK, DestinationAct.ASK, DestinationAct.ASK),
        (Word.NO_ANSWER, DestinationAct.RUN, DestinationAct.DISCARD, DestinationAct.ASK),
        (Word.UNKNOWN, DestinationAct.RUN, DestinationAct.DISCARD, DestinationAct.ASK),
        (Word.COMMITTED, DestinationAct.RUN, DestinationAct.RUN, DestinationAct.RUN),
        (Word.ABORTED, DestinationAct.DISCARD, DestinationAct.DISCARD, DestinationAct.DISCARD),
        (Word.UNDECIDED, DestinationAct.ASK, DestinationAct.ASK, DestinationAct.ASK),
    ],
)
def test_a_decision_that_a_crash_cut_short_counts_only_while_the_source_is_silent(
    word: Word | None, after_resume: DestinationAct, after_abort: DestinationAct, undecided: DestinationAct
) -> None:
    truth = DestinationTruth(Tree.DEAD, images_complete=True, source=word)
    assert decide_destination((*HELD, resolved(Choice.RESUME_HERE)), truth) is after_resume
    assert decide_destination((*HELD, resolved(Choice.ABORT_HERE)), truth) is after_abort
    assert decide_destination(HELD, truth) is undecided


def test_resuming_after_a_decision_is_seen_through_without_asking() -> None:
    records = (*HELD, resolved(Choice.RESUME_HERE), Record(Mark.RESUMING))
    for word in (None, *Word):
        assert decide_destination(records, DestinationTruth(Tree.DEAD, True, word)) is DestinationAct.RUN
        assert decide_destination(records, DestinationTruth(Tree.ALIVE, True, word)) is DestinationAct.CONFIRM


@pytest.mark.parametrize(
    ("records", "tree", "destination", "act"),
    [
        (COMMITTED, Tree.DEAD, Word.NO_ANSWER, SourceAct.RESUME),
        ((*COMMITTED, resolved(Choice.ABORT_HERE)), Tree.DEAD, Word.NO_ANSWER, SourceAct.GIVE_UP),
        ((*COMMITTED, resolved(Choice.ABORT_HERE, Word.RUNNING)), Tree.DEAD, Word.NO_ANSWER, SourceAct.RESUME),
        (COMMITTED, Tree.ALIVE, Word.NO_ANSWER, SourceAct.ROLL_BACK),
        (COMMITTED, Tree.ALIVE, Word.HELD, SourceAct.ROLL_BACK),
        (COMMITTED, Tree.ALIVE, Word.RUNNING, SourceAct.STAND_BY),
        (COMMITTED[:2], Tree.ALIVE, Word.RUNNING, SourceAct.STAND_BY),
        ((*COMMITTED, resolved(Choice.RESUME_THERE, Word.RUNNING)), Tree.ALIVE, Word.NO_ANSWER, SourceAct.STAND_BY),
        ((*COMMITTED, resolved(Choice.ABORT_HERE, Word.RUNNING)), Tree.ALIVE, Word.RUNNING, SourceAct.FINISH_KILL),
        ((*COMMITTED, resolved(Choice.ABORT_HERE)), Tree.ALIVE, Word.RUNNING, SourceAct.ROLL_BACK),
        ((*COMMITTED, resolved(Choice.RESUME_HERE, Word.RUNNING)), Tree.ALIVE, Word.RUNNING, SourceAct.ROLL_BACK),
        ((*COMMITTED, resolved(Choice.RESUME_HERE, Word.RUNNING)), Tree.HELD, Word.RUNNING, SourceAct.WAIT),
    ],
)
def test_what_the_source_makes_of_it(
    records: tuple[Record, ...], tree: Tree, destination: Word, act: SourceAct
) -> None:
    truth = SourceTruth(tree, others_alive=False, destination=destination)
    assert decide_source(records, truth) is act


def test_what_was_given_up_as_lost_may_run_should_a_copy_turn_up() -> None:
    lost = (*COMMITTED, resolved(Choice.ABORT_HERE), Record(Mark.ENDED, {"outcome": "lost"}))
    assert source_word(lost, killed=False) is Word.COMMITTED
    assert source_word(COMMITTED, killed=False) is Word.UNDECIDED
    rolled_back = (*COMMITTED, Record(Mark.ROLLING_BACK), Record(Mark.ENDED, {"outcome": "rolled_back"}))
    assert source_word(rolled_back, killed=False) is Word.ABORTED


def test_every_record_has_words() -> None:
    for mark in Mark:
        record = resolved(Choice.RESUME_HERE) if mark is Mark.RESOLVED else Record(mark, {"outcome": "rolled_back"})
        assert describe_record(record)


def test_the_error_names_the_command() -> None:
    for role in Role:
        assert "`phaul resolve ab12`" in in_doubt("ab12", role).hint
        assert in_doubt("ab12", role, "it runs on both").message == "it runs on both"


def test_the_report_has_the_fields_of_the_protocol() -> None:
    from phaul.rpc.v1 import agent_pb2

    names = {field.name for field in agent_pb2.DoubtReport.DESCRIPTOR.fields}
    assert names == set(DoubtReport.__dataclass_fields__)
