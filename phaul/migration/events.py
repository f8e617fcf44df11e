"""What a migration tells while it goes on: the same events feed the terminal, `--json`, the history and the log.

Pure values. The coordinator emits them, `agent` carries them; field names are those of proto/phaul/v1/agent.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from phaul.errors import PhaulError
from phaul.migration.facts import Mode


class Phase(StrEnum):
    """The phases, in order. Each knows from its name what undoes it; see docs/design/architecture.md."""

    PREFLIGHT = "preflight"
    PREPARE = "prepare"
    PRECOPY = "precopy"
    FREEZE = "freeze"
    TRANSFER = "transfer"
    RESTORE = "restore"
    SWITCHOVER = "switchover"
    COMMIT = "commit"
    RESUME = "resume"
    CLEANUP = "cleanup"


class Role(StrEnum):
    """Which side of a migration a host is."""

    SOURCE = "source"
    DESTINATION = "destination"


class Outcome(StrEnum):
    """How a migration stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"
    IN_DOUBT = "in_doubt"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the downtime. `start_us` counts from the freeze; steps may overlap."""

    name: str
    start_us: int
    duration_us: int
    host: Role


@dataclass(frozen=True, slots=True)
class PhaseDuration:
    """How long a phase was the current one."""

    phase: Phase
    duration_us: int


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """The account of a completed migration."""

    new_pid: int
    downtime_us: int
    freeze_us: int
    total_us: int
    memory_bytes: int
    image_bytes: int
    phases: tuple[PhaseDuration, ...]
    steps: tuple[Step, ...]
    warnings: tuple[str, ...]
    processes: int
    connections: int
    addresses: tuple[str, ...]
    wire_bytes: int = 0  # what went over the wire for all pages, headers and all
    compressed: bool = False  # whether any of them went compressed
    mode: Mode = Mode.STOP_AND_COPY
    rounds: int = 0  # of pre-copy, before the freeze
    sent_bytes: int = 0  # content of all pages that were sent, those of earlier rounds too
    predicted_downtime_us: int = 0  # as it was predicted right before the freeze; 0 where it was not


@dataclass(frozen=True, slots=True)
class Started:
    """The first event, and again when preflight knows the sizes."""

    root_pid: int
    command: str
    destination: str
    processes: int = 0
    memory_bytes: int = 0
    connections: int = 0


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase began; the one before it has ended."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Progress:
    """Memory on its way."""

    phase: Phase
    done_bytes: int
    total_bytes: int
    bytes_per_second: int


@dataclass(frozen=True, slots=True)
class Warning:
    """Something that does not stop the migration but that a person should know."""

    message: str


@dataclass(frozen=True, slots=True)
class ModeChosen:
    """How the memory goes, said once, before the first of it does. `mode` is never AUTO; `reason` is one sentence."""

    mode: Mode
    reason: str


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """One round of pre-copy. `number` counts from 1; `next` says in words what follows."""

    number: int
    page_bytes: int
    wire_bytes: int
    send_us: int
    frozen_us: int
    dirty_bytes_per_second: int
    predicted_downtime_us: int
    wished_downtime_us: int
    next: str


@dataclass(frozen=True, slots=True)
class HookRan:
    """An action script has ended on one of the hosts; the fields are those of `facts.HookRun`."""

    host: Role
    stage: str
    path: str
    exit_status: int
    duration_us: int
    output: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event: `report` when completed, `error` otherwise."""

    outcome: Outcome
    report: MigrationReport | None = None
    error: PhaulError | None = None


Event = Started | PhaseStarted | ModeChosen | RoundFinished | Progress | Warning | HookRan | Finished


class EventSink(Protocol):
    """Where the events of one migration go. Never raises, never waits."""

    def emit(self, event: Event) -> None:
        """Take the next event."""
        ...
