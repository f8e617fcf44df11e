"""What is known of one migration, folded from its events. Pure: no clock, no terminal, no gRPC call.

`follow` folds with `advance`, `display` turns the result into something to look at. Events are those of
proto/phaul/v1/agent.proto; a view made from the first event on is the same however often the stream was opened again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from phaul.agent.messages import error_from_message
from phaul.errors import PhaulError
from phaul.rpc.v1.agent_pb2 import HookRan, MigrationEvent, MigrationReport, Outcome, Phase, Role, RoundFinished
from phaul.rpc.v1.facts_pb2 import Mode, Problem, Severity


class PhaseState(StrEnum):
    """How far a phase has come."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


# Stop-and-copy in the order of docs: pre-copy is shown only where it takes place.
USUAL_PHASES = ("preflight", "prepare", "freeze", "transfer", "restore", "switchover", "commit", "resume", "cleanup")


@dataclass(frozen=True, slots=True)
class PhaseView:
    """One phase that has begun. `ended_unix_us` is None while it runs; both are the agent's clock (of this host)."""

    name: str
    started_unix_us: int
    ended_unix_us: int | None = None
    state: PhaseState = PhaseState.RUNNING

    def elapsed_us(self, now_unix_us: int) -> int:
        """How long it took, or has taken by now."""
        end = now_unix_us if self.ended_unix_us is None else self.ended_unix_us
        return max(0, end - self.started_unix_us)


@dataclass(frozen=True, slots=True)
class MigrationView:
    """A migration as far as its events tell.

    Invariants: at most one phase is running, and none once `outcome` is set; `done_bytes` never shrinks; nothing
    changes after `outcome` is set.
    """

    migration_id: str = ""
    sequence: int = 0
    started_unix_us: int = 0  # 0 before the first event
    ended_unix_us: int | None = None
    root_pid: int = 0
    command: str = ""
    destination: str = ""
    processes: int = 0
    memory_bytes: int = 0
    connections: int = 0
    phases: tuple[PhaseView, ...] = ()
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: int = 0
    memory_sent: bool = False  # all of it, which is known once a phase after FREEZE has begun
    mode: str = ""  # "pre-copy" or "stop-and-copy", once that is known
    mode_reason: str = ""
    rounds: tuple[RoundFinished, ...] = ()
    hooks: tuple[HookRan, ...] = ()  # action scripts that have ended
    warnings: tuple[str, ...] = ()
    outcome: str = ""  # as `outcome_name` gives it; "" while it runs
    report: MigrationReport | None = None
    error: PhaulError | None = None

    @property
    def current(self) -> PhaseView | None:
        """The phase that runs now."""
        return self.phases[-1] if self.phases and self.phases[-1].state is PhaseState.RUNNING else None

    @property
    def pending(self) -> tuple[str, ...]:
        """Names of the phases still to come, in order."""
        begun = {phase.name for phase in self.phases} - {"precopy"}
        reached = max((USUAL_PHASES.index(name) for name in begun if name in USUAL_PHASES), default=-1)
        return USUAL_PHASES[reached + 1 :]

    @property
    def share(self) -> float | None:
        """How much of the memory has gone, 0 to 1; None before there is anything to say."""
        if self.memory_sent:
            return 1.0
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else None

    @property
    def eta_seconds(self) -> float | None:
        """How long the rest of the memory will take at the present rate; None where that cannot be said."""
        if not self.bytes_per_second or not self.total_bytes or self.memory_sent or self.outcome:
            return None
        return max(0, self.total_bytes - self.done_bytes) / self.bytes_per_second

    def elapsed_us(self, now_unix_us: int) -> int:
        """How long the migration took, or has taken by now."""
        if not self.started_unix_us:
            return 0
        end = now_unix_us if self.ended_unix_us is None else self.ended_unix_us
        return max(0, end - self.started_unix_us)


def advance(view: MigrationView, event: MigrationEvent) -> MigrationView:
    """Take one more event in. One that was seen before, or comes after the end, changes nothing."""
    if view.outcome or (event.sequence and event.sequence <= view.sequence):
        return view
    view = replace(
        view,
        migration_id=event.migration_id or view.migration_id,
        sequence=event.sequence or view.sequence,
        started_unix_us=view.started_unix_us or event.unix_us,
    )
    match event.WhichOneof("kind"):
        case "started":
            started = event.started
            return replace(
                view,
                root_pid=started.root_pid,
                command=started.command or view.command,
                destination=started.destination or view.destination,
                processes=started.processes or view.processes,
                memory_bytes=started.memory_bytes or view.memory_bytes,
                connections=started.connections or view.connections,
                total_bytes=view.total_bytes or started.memory_bytes,
            )
        case "phase_started":
            begun = PhaseView(phase_name(event.phase_started.phase), event.unix_us)
            return replace(
                view,
                phases=(*_end_phase(view, event.unix_us, PhaseState.DONE), begun),
                # The total was an estimate, and the last figure of progress came before the end of FREEZE.
                memory_sent=view.memory_sent
                or (event.phase_started.phase > Phase.PHASE_FREEZE and view.done_bytes > 0),
            )
        case "progress":
            progress = event.progress
            done_bytes = max(view.done_bytes, progress.done_bytes)
            return replace(
                view,
                done_bytes=done_bytes,
                total_bytes=max(progress.total_bytes or view.total_bytes, done_bytes),
                bytes_per_second=progress.bytes_per_second,
            )
        case "mode_chosen":
            return replace(view, mode=mode_name(event.mode_chosen.mode), mode_reason=event.mode_chosen.reason)
        case "round_finished":
            return replace(view, rounds=(*view.rounds, event.round_finished))
        case "hook_ran":
            return replace(view, hooks=(*view.hooks, event.hook_ran))
        case "warning":
            return replace(view, warnings=(*view.warnings, event.warning.message))
        case "finished":
            return _finish(view, event)
        case _:
            return view  # a kind that a newer agent knows


def _end_phase(view: MigrationView, unix_us: int, state: PhaseState) -> tuple[PhaseView, ...]:
    current = view.current
    if current is None:
        return view.phases
    return (*view.phases[:-1], replace(current, ended_unix_us=unix_us, state=state))


def _finish(view: MigrationView, event: MigrationEvent) -> MigrationView:
    finished = event.finished
    completed = finished.outcome == Outcome.OUTCOME_COMPLETED
    report = finished.report if finished.HasField("report") else None
    late_warnings = tuple(warning for warning in report.warnings if warning not in view.warnings) if report else ()
    return replace(
        view,
        ended_unix_us=event.unix_us,
        phases=_end_phase(view, event.unix_us, PhaseState.DONE if completed else PhaseState.FAILED),
        outcome=outcome_name(finished.outcome) or "unspecified",
        report=report,
        warnings=(*view.warnings, *late_warnings),
        error=error_from_message(finished.error) if finished.HasField("error") else None,
    )


def phase_name(phase: Phase.ValueType) -> str:
    """Name a phase as the docs do, in lower case; "" for none, "phase 12" for one that a newer agent knows."""
    return _short(Phase.Name(phase), "PHASE_") if phase in Phase.values() else f"phase {phase}"


def mode_name(mode: Mode.ValueType) -> str:
    """Name a mode as `--mode` does."""
    return _short(Mode.Name(mode), "MODE_").replace("_", "-") if mode in Mode.values() else f"mode {mode}"


def outcome_name(outcome: Outcome.ValueType) -> str:
    """Name an outcome in lower case: running, completed, refused, rolled_back, in_doubt, lost; "" for none."""
    return _short(Outcome.Name(outcome), "OUTCOME_") if outcome in Outcome.values() else f"outcome {outcome}"


def role_name(role: Role.ValueType) -> str:
    """Name a role: source, destination; "" for none."""
    return _short(Role.Name(role), "ROLE_") if role in Role.values() else f"role {role}"


def refuses(problem: Problem) -> bool:
    """Whether this problem stops a migration. One without a severity does: rather too careful."""
    return problem.severity != Severity.SEVERITY_WARNS


def _short(name: str, prefix: str) -> str:
    short = name.removeprefix(prefix).lower()
    return "" if short == "unspecified" else short
