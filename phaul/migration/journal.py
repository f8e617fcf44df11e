"""What a host must still know after its agent was killed: one journal a migration, each record durable before its act.

The coordinator and the destination write it through the `Journal` protocol, `recovery` reads it. A record says what is
about to be done, so an act that a journal does not announce has not been begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

Data = Mapping[str, Any]  # JSON values only


class Mark(StrEnum):
    """What a record announces."""

    # on the source
    PLANNED = "planned"  # preflight is over; names the tree, the addresses and the destination
    PRECOPYING = "precopying"  # CRIU's pre-dumps: the tree is stopped for a moment in each
    THROTTLING = "throttling"  # the workload is slowed down; what its quota was
    FREEZING = "freezing"  # the fence, then CRIU's dump
    SWITCHING = "switching"  # the addresses are taken off
    COMMIT = "commit"  # the tree is killed
    RESUMED = "resumed"  # the destination has said that the copy runs
    ROLLING_BACK = "rolling_back"
    # on the destination
    RESERVED = "reserved"  # room, page channel, addresses behind a fence
    HELD = "held"  # images complete and verified, a copy was restored from them; names the copy's root task
    RESUMING = "resuming"  # the source has said that its tree is dead: fence lifted, gate passed
    RUNNING = "running"  # the copy runs
    ABORTING = "aborting"
    # on both
    HOOKS = "hooks"  # action scripts of a stage past the decision, which are run once; names the stage
    HOOKS_RAN = "hooks_ran"  # they have ended, however
    RESOLVED = "resolved"  # what a person decided, here or (`RESUME_THERE`) on the other host, and what was known then
    ENDED = "ended"  # every act before is done or undone; names the outcome


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a journal."""

    mark: Mark
    data: Data = field(default_factory=dict)


class Journal(Protocol):
    """The journal of one migration on one host."""

    async def write(self, mark: Mark, data: Data | None = None) -> None:
        """Append a record; it is durable when this returns. Raises `JournalError` where it cannot be."""
        ...

    @property
    def records(self) -> Sequence[Record]:
        """Everything written so far, also by an agent before this one."""
        ...


def last_of(records: Sequence[Record], mark: Mark) -> Record | None:
    """Give the latest record with this mark."""
    return next((record for record in reversed(records) if record.mark is mark), None)


def ended(records: Sequence[Record]) -> bool:
    """Whether nothing is left to do for this migration on this host."""
    return last_of(records, Mark.ENDED) is not None
