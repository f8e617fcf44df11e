"""Where the time went: phases one after the other, and the steps of the downtime, which may overlap.

Used by the coordinator. Reads time only through the `Clock` it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from phaul.migration.events import Phase, PhaseDuration, Role, Step
from phaul.migration.interfaces import Clock


class Timeline:
    """The times of one migration. All in microseconds of `Clock.monotonic_us`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.started_us = clock.monotonic_us()
        self.frozen_us = 0  # 0 until the freeze
        self.killed_us = 0
        self.resumed_us = 0
        self._phases: list[tuple[Phase, int]] = []
        self._steps: list[tuple[str, int, int, Role]] = []

    def enter(self, phase: Phase) -> None:
        """The phase begins now, and the one before it ends."""
        self._phases.append((phase, self._clock.monotonic_us()))

    @contextmanager
    def step(self, name: str, host: Role = Role.SOURCE) -> Iterator[None]:
        """Time what is done inside."""
        start_us = self._clock.monotonic_us()
        try:
            yield
        finally:
            self.add_step(name, start_us, self._clock.monotonic_us() - start_us, host)

    def resume(self, running_for_us: int) -> None:
        """The copy has run for so long: the downtime is over, and its last step, which began with the kill."""
        self.resumed_us = max(self.killed_us, self._clock.monotonic_us() - running_for_us)
        self.add_step("resume", self.killed_us, self.resumed_us - self.killed_us, Role.DESTINATION)

    def run_on(self) -> None:
        """The tree runs again where it was."""
        self.killed_us = self.resumed_us = self._clock.monotonic_us()

    def add_step(self, name: str, start_us: int, duration_us: int, host: Role) -> None:
        """Add a step that was timed elsewhere."""
        self._steps.append((name, start_us, duration_us, host))

    def phases(self) -> tuple[PhaseDuration, ...]:
        """Every phase that was entered and how long it lasted, the last one until now."""
        ends = [start for _, start in self._phases[1:]] + [self._clock.monotonic_us()]
        # Before the first phase there is an end and no beginning.
        return tuple(PhaseDuration(phase, end - start) for (phase, start), end in zip(self._phases, ends, strict=False))

    def steps(self) -> tuple[Step, ...]:
        """The steps since the freeze, by their start."""
        found = (
            Step(name, start - self.frozen_us, duration, host)
            for name, start, duration, host in self._steps
            if start >= self.frozen_us > 0
        )
        return tuple(sorted(found, key=lambda step: step.start_us))
