"""The matrix as data: which faults there are, in which phases each can be met, and where the migration is caught.

Pure. A cell that is not in `CELLS` cannot be: before the freeze there is no CRIU to kill, after the restore none of its
faults is left to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from phaul.migration.events import Phase, Role

PAUSE_SECONDS = 1.5  # for what takes a while to arrive from outside: `phaul cancel` starts in half a second


class Fault(StrEnum):
    """What goes wrong."""

    SOURCE_AGENT = "kill-source-agent"
    DESTINATION_AGENT = "kill-destination-agent"
    SOURCE_CRIU = "kill-source-criu"
    DESTINATION_CRIU = "kill-destination-criu"
    CUT = "cut-5s"
    CUT_FOR_GOOD = "cut"
    SLOW = "slow"
    FULL = "full"
    OUT_OF_MEMORY = "oom"
    CRIU_EARLY = "criu-early"
    CRIU_LATE = "criu-late"
    TERMINAL = "terminal"
    CANCEL = "cancel"


MEANINGS = {
    Fault.SOURCE_AGENT: "SIGKILL to the source's agent; started again after 1 s",
    Fault.DESTINATION_AGENT: "SIGKILL to the destination's agent; started again after 1 s",
    Fault.SOURCE_CRIU: "SIGKILL to CRIU on the source",
    Fault.DESTINATION_CRIU: "SIGKILL to CRIU on the destination",
    Fault.CUT: "no packet between the two hosts for 5 s; the client reaches both all the time",
    Fault.CUT_FOR_GOOD: "no packet between the two hosts until the command has ended and the workload runs; after 20 s "
    "`phaul resolve ID --resume-here --yes` on the destination; the move has --freeze-timeout 5s",
    Fault.SLOW: "1 Mbit/s between the two hosts from here on; --freeze-timeout 5s",
    Fault.FULL: "the destination's room for images is full from here on (its tmpfs made as small as what is in it)",
    Fault.OUT_OF_MEMORY: "the destination's agent and all that it starts may have 8 MiB more of memory (cgroup)",
    Fault.CRIU_EARLY: "CRIU kills itself: CRIU_FAULT=1, as a dump begins; 2, when the root task is restored",
    Fault.CRIU_LATE: "CRIU fails: CRIU_FAULT=3, in the middle of the memory; 6, after the gate of the restore",
    Fault.TERMINAL: "SIGHUP to `phaul migrate`",
    Fault.CANCEL: "`phaul cancel`",
}

PHASES = tuple(phase for phase in Phase if phase is not Phase.PRECOPY)
_FROM_FREEZE = PHASES[PHASES.index(Phase.FREEZE) :]
_HELD = (Phase.RESTORE, Phase.SWITCHOVER, Phase.COMMIT, Phase.RESUME)
_WHERE = {
    Fault.SOURCE_CRIU: _FROM_FREEZE,
    Fault.DESTINATION_CRIU: _HELD,
    Fault.FULL: (Phase.FREEZE, Phase.TRANSFER, Phase.RESTORE),
    Fault.OUT_OF_MEMORY: (Phase.FREEZE, Phase.RESTORE),
    Fault.CRIU_EARLY: (Phase.FREEZE, Phase.RESTORE),
    Fault.CRIU_LATE: (Phase.FREEZE, Phase.RESTORE),
}
_CRIU_FAULTS = {
    # criu/include/fault-injection.h, CRIU 4.2: FI_DUMP_EARLY, FI_DUMP_PAGES, FI_RESTORE_ROOT_ONLY, FI_POST_RESTORE
    (Phase.FREEZE, Fault.CRIU_EARLY): 1,
    (Phase.FREEZE, Fault.CRIU_LATE): 3,
    (Phase.RESTORE, Fault.CRIU_EARLY): 2,
    (Phase.RESTORE, Fault.CRIU_LATE): 6,
}
_IN_THE_DESTINATION = (Fault.DESTINATION_AGENT, Fault.DESTINATION_CRIU)


class Catch(StrEnum):
    """How a migration is caught in its phase."""

    STOPPED = "stopped"  # one agent has stopped itself at the fault point
    PAUSED = "paused"  # the agent waits at the fault point and serves
    UNDER_WAY = "under_way"  # the memory is half through, on a link that was slowed for it
    NOT_AT_ALL = "not_at_all"  # CRIU is told beforehand


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault in one phase."""

    phase: Phase
    fault: Fault

    def __str__(self) -> str:
        return f"{self.phase}:{self.fault}"

    @property
    def catch(self) -> Catch:
        """How the migration is caught."""
        if self.fault in (Fault.CRIU_EARLY, Fault.CRIU_LATE):
            return Catch.NOT_AT_ALL
        if self.phase is Phase.FREEZE and self.fault not in (Fault.SLOW, Fault.FULL, Fault.OUT_OF_MEMORY):
            return Catch.UNDER_WAY
        return Catch.PAUSED if self.fault is Fault.CANCEL else Catch.STOPPED

    @property
    def role(self) -> Role:
        """Whose fault point it is: what is killed on the destination is killed in the destination's own step."""
        restoring = self.phase is Phase.RESTORE and self.fault in (
            *_IN_THE_DESTINATION, Fault.SOURCE_AGENT, Fault.SOURCE_CRIU, Fault.CUT, Fault.CUT_FOR_GOOD, Fault.CANCEL
        )  # fmt: skip
        resuming = self.phase in (Phase.PREPARE, Phase.RESUME, Phase.CLEANUP) and self.fault in _IN_THE_DESTINATION
        return Role.DESTINATION if restoring or resuming else Role.SOURCE

    def environment(self, role: Role) -> dict[str, str]:
        """What the agent on that side is started with."""
        number = _CRIU_FAULTS.get((self.phase, self.fault))
        if number is not None:
            mine = Role.SOURCE if self.phase is Phase.FREEZE else Role.DESTINATION
            return {"CRIU_FAULT": str(number)} if role is mine else {}
        if self.role is not role or self.catch not in (Catch.STOPPED, Catch.PAUSED):
            return {}
        action = "stop" if self.catch is Catch.STOPPED else f"pause:{PAUSE_SECONDS}"
        return {"PHAUL_FAULT": f"{role}.{self.phase}:{action}"}


CELLS = tuple(Cell(phase, fault) for phase in PHASES for fault in Fault if phase in _WHERE.get(fault, PHASES))
BY_NAME = {str(cell): cell for cell in CELLS}
