"""Slowing a workload down so that pre-copy catches up with it: by how much, and what that needs of the host.

`--on-stall throttle`. The policy is pure; the driver is `system.cpu_quota`. The quota must be put back on every way out
of a migration, also by an agent that starts after a crash: so what was there before is plain data that the coordinator
writes into its journal, durably, before the first change.
"""

from __future__ import annotations

from typing import Protocol

from phaul.migration.journal import Data

STEPS_PERCENT = (80, 60, 40, 20, 10)  # of the CPU time that the workload took when nobody slowed it


def next_step(now_percent: int, needed_percent: int | None) -> int | None:
    """Give the percentage to slow down to next; None when it is as slow as it may get.

    Steps that would not do are left out: the first at or below `needed_percent`. Where none is that low, the next one:
    shorter rounds may make up for the rest.
    """
    lower = [step for step in STEPS_PERCENT if step < now_percent]
    if not lower:
        return None
    enough = [step for step in lower if needed_percent is not None and step <= needed_percent]
    return enough[0] if enough else lower[0]


class Throttle(Protocol):
    """Takes CPU time away from a process tree, and gives it back."""

    async def look(self, root_pid: int) -> Data:
        """Say how the tree's CPU time is limited now and how much it takes: all that the other calls need.

        Changes nothing; takes about half a second. Raises `PreflightError` where the tree cannot be slowed without
        slowing others, or without the right to.
        """
        ...

    async def slow_to(self, before: Data, percent: int) -> None:
        """Leave the tree this share of what it took; 100: all, until it is slowed again.

        `before` has to be in the journal. The engine's work inside a frozen task is slowed as well, so 100 is due
        before each freeze. Raises `RolledBackError`.
        """
        ...

    async def put_back(self, before: Data) -> tuple[str, ...]:
        """Put everything back as `look` found it; gives what could not be, in words.

        May be called again, by another agent, after any part of `slow_to`, and when the tree has ended.
        """
        ...
