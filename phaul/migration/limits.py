"""Deadlines of a migration: past one, it is rolled back. CRIU has none of its own (its `timeout` covers seizing only).

Owned by the coordinator, whose task is cancelled when a limit passes; past COMMIT none is heard any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from phaul.errors import DeadlineError
from phaul.migration.interfaces import Clock
from phaul.units import format_seconds


class Limits:
    """The limits of the task that first calls `begin`.

    Args:
        heard: says whether a limit may still stop the migration.
    """

    def __init__(self, clock: Clock, heard: Callable[[], bool]) -> None:
        self._clock = clock
        self._heard = heard
        self._task: asyncio.Task[Any] | None = None
        self._watching: list[asyncio.Task[None]] = []
        self._ends_us: list[int] = []
        self.passed: DeadlineError | None = None  # why the task was cancelled, if it was by a limit

    def begin(self, what: str, seconds: float) -> None:
        """From now on `what` may take this long; 0 is no limit."""
        self._task = self._task or asyncio.current_task()
        if seconds > 0:
            self._ends_us.append(self._clock.monotonic_us() + round(seconds * 1e6))
            self._watching.append(asyncio.create_task(self._watch(what, seconds)))

    def left_us(self) -> int | None:
        """How long until the first limit passes; None where there is none."""
        return min(self._ends_us) - self._clock.monotonic_us() if self._ends_us else None

    def end(self) -> None:
        """No limit counts any more."""
        for watching in self._watching:
            watching.cancel()
        self._watching.clear()

    async def _watch(self, what: str, seconds: float) -> None:
        await self._clock.sleep(seconds)
        if self._heard() and self._task is not None:
            self.passed = DeadlineError(f"{what} took longer than the {format_seconds(seconds)} that were allowed")
            self._task.cancel()
