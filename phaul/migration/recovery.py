"""What an agent that starts must do about the migrations it finds unfinished. Pure: journal and truth in, act out.

`migration.settlement` observes and acts. Two rules carry it. A journal says what may have happened; whether it did is
asked of the kernel (is this very process alive?) and of the other host, never guessed from time. And a copy runs only
where it is certain that the source tree is dead and the destination has been told, or will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from phaul.migration.journal import Mark, Record, last_of


class Tree(StrEnum):
    """What the kernel says of the processes that a journal names (by PID, start time and boot)."""

    ALIVE = "alive"  # the root task lives, and no one holds it stopped any more
    HELD = "held"  # a CRIU of the agent before us still has it in its hands: it will let go
    UNFINISHED = "unfinished"  # a copy that a killed CRIU has left in its restorer: it has never run, and never will
    DEAD = "dead"  # the root task is gone
    ANOTHER_BOOT = "another_boot"  # this host was restarted since: the tree is gone with everything else


class Word(StrEnum):
    """What the other host says of a migration."""

    NO_ANSWER = "no_answer"
    UNKNOWN = "unknown"  # it has no record of it
    UNDECIDED = "undecided"  # source: under way, its tree not killed
    ABORTED = "aborted"
    COMMITTED = "committed"  # source: its tree is dead, killed for this migration
    RESERVED = "reserved"  # destination: not all is there
    HELD = "held"  # destination: a complete copy, or the verified images for one
    RUNNING = "running"  # destination: the copy runs, or ran


class SourceAct(StrEnum):
    """What the source does next."""

    NOTHING = "nothing"
    WAIT = "wait"  # look again shortly
    ROLL_BACK = "roll_back"  # addresses, fence and rules put back, images given back, the destination told to abort
    FINISH_KILL = "finish_kill"  # what is left of the tree is killed, then as RESUME
    RESUME = "resume"  # tell the destination, until it answers, that the tree is dead
    TIDY_UP = "tidy_up"  # the copy runs over there: fence, rules and images given back
    ENDED_BY_ITSELF = "ended_by_itself"  # roll back, but there is no workload any more
    STAND_BY = "stand_by"  # a person let the copy run over there, and the tree lives: it stays behind its fence
    GIVE_UP = "give_up"  # a person ended the wait for the destination: as TIDY_UP, but nobody knows of a running copy


class DestinationAct(StrEnum):
    """What the destination does next."""

    NOTHING = "nothing"
    WAIT = "wait"
    ASK = "ask"  # ask the source again, with back-off: in doubt until it answers
    DISCARD = "discard"  # copy, addresses, fence and images given back
    RUN = "run"  # the source tree is dead: restore from the images and let it run
    CONFIRM = "confirm"  # the copy runs: fence lifted, images given back


class Choice(StrEnum):
    """What a person can decide on one host; RESUME_THERE is how that host's journal names a decision of the other."""

    RESUME_HERE = "resume_here"
    ABORT_HERE = "abort_here"
    RESUME_THERE = "resume_there"


@dataclass(frozen=True, slots=True)
class Resolution:
    """The latest decision of a person, with what the other host had said then."""

    choice: Choice
    word: Word


def resolution_of(records: Sequence[Record]) -> Resolution | None:
    """Read the latest decision of a person out of a journal."""
    record = last_of(records, Mark.RESOLVED)
    return Resolution(Choice(record.data["choice"]), Word(record.data["word"])) if record else None


def runs_there(records: Sequence[Record]) -> bool:
    """Whether the source has heard, when a person decided, that the copy runs on the destination."""
    resolutions = [record for record in records if record.mark is Mark.RESOLVED]
    return any(record.data["word"] == Word.RUNNING for record in resolutions)


def decided_at_destination(records: Sequence[Record]) -> Mark | None:
    """Which way the destination went last: RESUMING, ABORTING, or None while it only holds."""
    ways = (Mark.RESUMING, Mark.ABORTING)
    return next((record.mark for record in reversed(records) if record.mark in ways), None)


@dataclass(frozen=True, slots=True)
class SourceTruth:
    """What the source's host can see. `others_alive`: whether a killed-for task other than the root lives still."""

    tree: Tree
    others_alive: bool
    destination: Word


def decide_source(records: Sequence[Record], truth: SourceTruth) -> SourceAct:
    """Say what the source does about one migration.

    The tree is killed root first, and only after COMMIT was durable: a dead root then means that the kill was begun,
    and a tree of which a part was killed is finished off, because no whole of it can run any more.
    """
    if not records or last_of(records, Mark.ENDED):
        return SourceAct.NOTHING
    if last_of(records, Mark.RESUMED):
        return SourceAct.TIDY_UP
    if truth.tree is Tree.HELD:
        return SourceAct.WAIT
    resolution = resolution_of(records)
    if resolution is not None:
        return _resolved_source(resolution, truth, there=runs_there(records))
    if last_of(records, Mark.ROLLING_BACK):
        return SourceAct.ROLL_BACK
    if truth.tree is Tree.ALIVE and truth.destination is Word.RUNNING:
        return SourceAct.STAND_BY
    if last_of(records, Mark.COMMIT):
        if truth.tree is Tree.ALIVE:
            return SourceAct.ROLL_BACK
        if truth.tree is Tree.DEAD and truth.others_alive:
            return SourceAct.FINISH_KILL
        return SourceAct.RESUME
    if truth.tree is Tree.ANOTHER_BOOT and truth.destination in (Word.HELD, Word.NO_ANSWER):
        # The host died under the workload. A complete copy over there is all that is left of it, and no tree of ours
        # can ever run again: that is what COMMIT would have made true.
        return SourceAct.RESUME if truth.destination is Word.HELD else SourceAct.WAIT
    return SourceAct.ROLL_BACK if truth.tree is Tree.ALIVE else SourceAct.ENDED_BY_ITSELF


def _resolved_source(resolution: Resolution, truth: SourceTruth, *, there: bool) -> SourceAct:
    """The same once a person has decided. What they decide for a living tree is not what they decide for a dead one."""
    aborts = resolution.choice is Choice.ABORT_HERE
    if truth.tree is Tree.ALIVE:
        if resolution.choice is Choice.RESUME_THERE:
            return SourceAct.STAND_BY
        return SourceAct.FINISH_KILL if aborts and there else SourceAct.ROLL_BACK
    if truth.tree is Tree.DEAD and truth.others_alive:
        return SourceAct.FINISH_KILL
    if aborts and resolution.word is not Word.RUNNING:
        return SourceAct.GIVE_UP
    return SourceAct.RESUME if there else SourceAct.ENDED_BY_ITSELF


@dataclass(frozen=True, slots=True)
class DestinationTruth:
    """What the destination's host can see. `images_complete`: the verified images are still in their room.

    `source` is None where the source was not asked yet.
    """

    copy: Tree
    images_complete: bool
    source: Word | None


def decide_destination(records: Sequence[Record], truth: DestinationTruth) -> DestinationAct:
    """Say what the destination does about one migration.

    Before HELD nothing here can be the last copy, so it is thrown away without asking. From HELD on only the source's
    word, or its having been heard before (RESUMING), decides: silence never runs a copy and never throws one away.
    RUN begins with killing what is left of a copy, so that it is right for an UNFINISHED one as well.
    Only a person may decide in its place, and only while it is silent.
    """
    if not records or last_of(records, Mark.ENDED):
        return DestinationAct.NOTHING
    if truth.copy is Tree.HELD:
        return DestinationAct.WAIT
    if last_of(records, Mark.RUNNING):
        return DestinationAct.CONFIRM
    decided = decided_at_destination(records)
    if decided is Mark.RESUMING:
        return DestinationAct.CONFIRM if truth.copy is Tree.ALIVE else DestinationAct.RUN
    if decided is Mark.ABORTING or not last_of(records, Mark.HELD):
        return DestinationAct.DISCARD
    match truth.source:
        case Word.COMMITTED:
            return DestinationAct.RUN
        case Word.ABORTED:
            return DestinationAct.DISCARD
        case Word.NO_ANSWER | Word.UNKNOWN:
            resolution = resolution_of(records)
            if resolution is None:
                return DestinationAct.ASK
            return DestinationAct.RUN if resolution.choice is Choice.RESUME_HERE else DestinationAct.DISCARD
        case _:
            return DestinationAct.ASK


def source_word(records: Sequence[Record], *, killed: bool) -> Word:
    """What the source says of a migration to the destination that asks.

    `killed`: its tree is known to be dead after COMMIT. One that was given up as lost is dead as well: should a copy
    turn up after all, it is the only one, and may run.
    """
    end = last_of(records, Mark.ENDED)
    if killed or last_of(records, Mark.RESUMED) or (end and end.data.get("outcome") in ("completed", "lost")):
        return Word.COMMITTED
    if end or last_of(records, Mark.ROLLING_BACK):
        return Word.ABORTED
    return Word.UNDECIDED if records else Word.UNKNOWN


def destination_word(records: Sequence[Record]) -> Word:
    """What the destination says of a migration to the source that asks."""
    end = last_of(records, Mark.ENDED)
    if last_of(records, Mark.RUNNING) or (end and end.data.get("outcome") == "completed"):
        return Word.RUNNING
    if end or last_of(records, Mark.ABORTING):
        return Word.ABORTED
    if last_of(records, Mark.HELD):
        return Word.HELD
    return Word.RESERVED if records else Word.UNKNOWN
