"""What a person may decide about a migration on one host, and how safe each choice is. Pure: truth in, options out.

`agent.resolution` observes and acts. A choice is SAFE where it leads to exactly one copy whatever the other host does;
UNSAFE where that hangs on something that only the person can know; IMPOSSIBLE where it cannot be done, or where what is
known already says that it would be wrong. Silence makes a choice unsafe, an answer against it makes it impossible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from phaul.errors import InDoubtError
from phaul.migration.events import Role
from phaul.migration.journal import Mark, Record, ended, last_of
from phaul.migration.recovery import Choice, Tree, Word, decided_at_destination, runs_there


class Safety(StrEnum):
    """How far a choice can be trusted."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class DoubtOption:
    """One choice. `danger` says, of an unsafe one, what happens if the person is wrong."""

    choice: Choice
    safety: Safety
    reason: str
    danger: str = ""


@dataclass(frozen=True, slots=True)
class Situation:
    """All that can be known on one host.

    Args:
        tree: the workload's tree on the source, the copy on the destination; None where none was ever named.
        at_work: this agent holds it itself: a coordinator on the source, a held restore on the destination.
        images_complete: everything to restore the copy from is on this host.
        other: what the other host said just now.
    """

    role: Role
    records: Sequence[Record]
    tree: Tree | None
    at_work: bool
    images_complete: bool
    other: Word


@dataclass(frozen=True, slots=True)
class DoubtReport:
    """A situation in words, with what may be decided. Field names are those of proto/phaul/v1/agent.proto."""

    migration_id: str
    role: Role
    peer: str
    root_pid: int
    command: str
    settled: bool
    stands: str
    marks: tuple[str, ...]
    tree: Tree | None
    images_complete: bool
    other: Word
    options: tuple[DoubtOption, ...]


MARKS = {
    Mark.PLANNED: "preflight is over",
    Mark.PRECOPYING: "memory began to go while the workload ran",
    Mark.THROTTLING: "the workload was about to be slowed down",
    Mark.FREEZING: "the workload was about to be frozen",
    Mark.SWITCHING: "the addresses were about to be taken off",
    Mark.COMMIT: "COMMIT: the workload's processes were about to be killed",
    Mark.RESUMED: "the destination said that the copy runs",
    Mark.ROLLING_BACK: "rolling back",
    Mark.RESERVED: "room and addresses were about to be reserved",
    Mark.HELD: "a complete copy was restored and held; the source was told so",
    Mark.RESUMING: "the copy was about to be let run",
    Mark.RUNNING: "the copy runs",
    Mark.ABORTING: "the copy was about to be thrown away",
    Mark.HOOKS: "action scripts were about to be run",
    Mark.HOOKS_RAN: "action scripts had run",
    Mark.ENDED: "ended",
}
RESOLUTIONS = {
    Choice.RESUME_HERE: "a person decided: resume here",
    Choice.ABORT_HERE: "a person decided: abort here",
    Choice.RESUME_THERE: "a person decided on the destination: resume there",
}

TWO_COPIES = "If the other host still runs it, there will be two copies."
LAST_COPY = "If the source's processes are dead, this is the last copy, and the workload is lost."
MOMENT = "CRIU still has it in its hands; look again in a moment"


def describe_record(record: Record) -> str:
    """Say one line of a journal in words."""
    if record.mark is Mark.RESOLVED:
        return RESOLUTIONS[Choice(record.data["choice"])]
    if record.mark is Mark.ENDED:
        return "ended: " + str(record.data.get("outcome", "")).replace("_", " ")
    return MARKS[record.mark]


def in_doubt(migration_id: str, role: Role, why: str = "") -> InDoubtError:
    """The error that `phaul status` shows while a migration is in doubt. `why` is "" where the other host is silent."""
    silence = {
        Role.SOURCE: "the workload's processes on this host are dead, and the destination does not answer",
        Role.DESTINATION: "the source does not answer, and only it knows whether the copy may run here",
    }
    asked = "" if why else "The other host is asked again until it answers. If it is gone for good: "
    return InDoubtError(why or silence[role], hint=f"{asked}`phaul resolve {migration_id}`")


def stands(situation: Situation) -> str:
    """Say how it stands on this host."""
    if ended(situation.records):
        return describe_record(situation.records[-1])
    if situation.role is Role.SOURCE:
        return _stands_source(situation)
    match situation:
        case Situation(tree=None):
            return "no complete copy"
        case Situation(at_work=True):
            return "a complete copy, held: it has not run yet"
        case Situation(tree=Tree.ALIVE) if last_of(situation.records, Mark.RESUMING):
            return "runs"
        case Situation(tree=Tree.ALIVE | Tree.HELD):
            return "a copy in the hands of CRIU, which will let go of it"
        case Situation(tree=Tree.UNFINISHED, images_complete=True):
            return "a copy that never ran, left by a CRIU that was killed; the images are complete"
        case Situation(images_complete=True):
            return "no processes; the images are complete"
        case _:
            return "nothing: no processes, no images"


def _stands_source(situation: Situation) -> str:
    match situation.tree:
        case Tree.ALIVE:
            return "runs"
        case Tree.HELD:
            return "frozen, in the hands of CRIU"
        case Tree.DEAD | Tree.UNFINISHED:
            return "dead"
        case Tree.ANOTHER_BOOT:
            return "dead: this host was restarted since"
        case None:
            return "was not touched yet"


def options(situation: Situation) -> tuple[DoubtOption, DoubtOption]:
    """Give both choices, RESUME_HERE first."""
    if ended(situation.records):
        over = "the migration has ended"
        return _neither(over)
    return _on_source(situation) if situation.role is Role.SOURCE else _on_destination(situation)


def _on_source(situation: Situation) -> tuple[DoubtOption, DoubtOption]:
    records, tree = situation.records, situation.tree
    if last_of(records, Mark.RESUMED):
        return _neither("the destination has said that it runs the copy")
    committed = last_of(records, Mark.COMMIT) is not None
    if situation.at_work and not committed:
        if last_of(records, Mark.ROLLING_BACK):
            return _neither("it is being rolled back already")
        before = "it is before COMMIT: it is rolled back, as `phaul cancel` does, and the workload runs on here"
        return _safe(Choice.RESUME_HERE, before), _safe(Choice.ABORT_HERE, before)
    if tree is Tree.HELD or (situation.at_work and tree is Tree.ALIVE) or tree is None:
        return _neither(MOMENT)
    if tree is Tree.ALIVE:
        return _living_source(situation)
    resume = _impossible(Choice.RESUME_HERE, "the workload's processes on this host are dead")
    return resume, _give_up(situation, committed)


def _living_source(situation: Situation) -> tuple[DoubtOption, DoubtOption]:
    """No agent holds the tree, and it was not killed: it runs, in the general case about to be rolled back."""
    over_there = "the copy on the destination runs"
    kill = "; this host's processes are killed, as COMMIT would have done"
    if situation.other is Word.RUNNING:
        return (
            _unsafe(Choice.RESUME_HERE, over_there, "There will be two copies, until you end the other one."),
            _safe(Choice.ABORT_HERE, over_there + kill),
        )
    if runs_there(situation.records):
        return (
            _unsafe(Choice.RESUME_HERE, f"{over_there}, as far as this host knows", TWO_COPIES),
            _unsafe(
                Choice.ABORT_HERE,
                f"{over_there}, as far as this host knows{kill}",
                "If the copy does not run any more, this is the last one, and the workload is lost.",
            ),
        )
    return (
        _safe(Choice.RESUME_HERE, "the workload was not killed, and no copy runs: the migration is rolled back"),
        _impossible(Choice.ABORT_HERE, "the workload runs here, and nowhere else"),
    )


def _give_up(situation: Situation, committed: bool) -> DoubtOption:
    choice = Choice.ABORT_HERE
    if not committed and situation.tree is Tree.DEAD and not runs_there(situation.records):
        return _impossible(choice, "the workload ended by itself; what is left of the migration is being undone")
    match situation.other:
        case Word.RUNNING if not situation.at_work:
            return _safe(choice, "the copy on the destination runs: only tidying up is left")
        case Word.ABORTED | Word.UNKNOWN:
            return _safe(choice, "the destination has no copy: there is nothing to wait for")
        case Word.NO_ANSWER:
            return _unsafe(
                choice,
                "the destination does not answer: this host stops asking it, and gives up its part",
                "If the destination comes back with its copy, that runs there: do not start the workload anew before "
                "you know that it will not.",
            )
        case _:
            return _impossible(choice, "the destination answers, and is told to run its copy until it does")


def _on_destination(situation: Situation) -> tuple[DoubtOption, DoubtOption]:
    records = situation.records
    if last_of(records, Mark.RUNNING):
        return _neither("the copy runs here")
    decided = decided_at_destination(records)
    if decided is Mark.ABORTING:
        return (
            _impossible(Choice.RESUME_HERE, "the copy was thrown away"),
            _safe(Choice.ABORT_HERE, "what is left of it is thrown away as well"),
        )
    if not last_of(records, Mark.HELD):
        return _before_held(situation)
    if situation.tree is Tree.HELD and not situation.at_work:
        return _neither(MOMENT)
    if decided is Mark.RESUMING and situation.tree is Tree.ALIVE:
        return _neither("the copy runs here")
    if not situation.at_work and not situation.images_complete:
        return (
            _impossible(Choice.RESUME_HERE, "there is no copy here any more, and no images for one"),
            _safe(Choice.ABORT_HERE, "there is nothing here to lose"),
        )
    return _resume_copy(situation, decided is Mark.RESUMING), _discard_copy(situation)


def _before_held(situation: Situation) -> tuple[DoubtOption, DoubtOption]:
    resume = _impossible(Choice.RESUME_HERE, "there is no complete copy on this host")
    if situation.other is Word.UNDECIDED:
        return resume, _impossible(Choice.ABORT_HERE, "it is under way; `phaul cancel` on the source stops it")
    return resume, _safe(Choice.ABORT_HERE, "the source was never told of a copy here: it runs on there")


def _resume_copy(situation: Situation, decided: bool) -> DoubtOption:
    choice = Choice.RESUME_HERE
    match situation.other:
        case Word.COMMITTED:
            return _safe(choice, "the source says that its processes are dead")
        case Word.NO_ANSWER | Word.UNKNOWN:
            if decided:
                return _unsafe(choice, "it was decided before that the copy runs here: it is tried again", TWO_COPIES)
            silence = "the source does not answer" if situation.other is Word.NO_ANSWER else "the source has no record"
            return _unsafe(choice, f"{silence}: right only if it is gone for good", TWO_COPIES)
        case Word.ABORTED:
            return _impossible(choice, "the source says that it rolled back: the workload is there")
        case Word.UNDECIDED:
            return _impossible(choice, "the source says that it has not decided yet: the workload may run there")
        case _:
            return _impossible(choice, f"the source gives an answer that is none of a source: {situation.other}")


def _discard_copy(situation: Situation) -> DoubtOption:
    choice = Choice.ABORT_HERE
    match situation.other:
        case Word.ABORTED:
            return _safe(choice, "the source says that it rolled back: nobody needs this copy")
        case Word.COMMITTED:
            return _impossible(choice, "the source says that its processes are dead: this is the last copy")
        case Word.UNDECIDED:
            return _impossible(
                choice, "the source has not decided yet, and may commit to this copy; `phaul cancel` there stops it"
            )
        case Word.NO_ANSWER | Word.UNKNOWN:
            silence = "does not answer" if situation.other is Word.NO_ANSWER else "has no record"
            return _unsafe(choice, f"the source {silence}: right only if the workload runs there", LAST_COPY)
        case _:
            return _impossible(choice, f"the source gives an answer that is none of a source: {situation.other}")


def _safe(choice: Choice, reason: str) -> DoubtOption:
    return DoubtOption(choice, Safety.SAFE, reason)


def _unsafe(choice: Choice, reason: str, danger: str) -> DoubtOption:
    return DoubtOption(choice, Safety.UNSAFE, reason, danger)


def _impossible(choice: Choice, reason: str) -> DoubtOption:
    return DoubtOption(choice, Safety.IMPOSSIBLE, reason)


def _neither(reason: str) -> tuple[DoubtOption, DoubtOption]:
    return _impossible(Choice.RESUME_HERE, reason), _impossible(Choice.ABORT_HERE, reason)
