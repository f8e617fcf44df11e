"""Points at which an agent kills, stops or pauses itself, to try what a crash at just that moment does.

Off unless PHAUL_FAULT stands in the agent's environment, as CRIU_FAULT does for CRIU: `ROLE.PHASE:ACTION`, for example
`source.commit:kill`, `destination.restore:stop` or `source.switchover:pause:0.5`. Reached by the coordinator as it
enters a phase and by an arrival at its own; given to both by `agent.wiring`. Decides nothing and changes nothing else.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from phaul.errors import UsageError

VARIABLE = "PHAUL_FAULT"
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}  # a stopped agent goes on at SIGCONT


@dataclass(frozen=True, slots=True)
class FaultPoint:
    """Where and what. `number` is the signal that the agent sends itself; without one it pauses."""

    role: str
    phase: str
    number: signal.Signals | None
    pause_seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> FaultPoint:
        """Read the variable. Raises `UsageError`."""
        point, _, action = text.partition(":")
        role, _, phase = point.partition(".")
        name, _, seconds = action.partition(":")
        try:
            if not role or not phase:
                raise ValueError
            if name == "pause":
                return cls(role, phase, None, float(seconds))
            return cls(role, phase, SIGNALS[name])
        except (KeyError, ValueError):
            raise UsageError(
                f"{VARIABLE} is {text!r}, which names no fault",
                hint="It is for tests: ROLE.PHASE:ACTION, the action being kill, stop or pause:SECONDS.",
            ) from None

    async def reached(self, role: str, phase: str) -> None:
        """Do it, if this is the point."""
        if (role, phase) != (self.role, self.phase):
            return
        if self.number is None:
            await asyncio.sleep(self.pause_seconds)
        else:
            os.kill(os.getpid(), self.number)


async def nothing(role: str, phase: str) -> None:
    """What is reached where no fault is asked for."""


def from_environment() -> Callable[[str, str], Awaitable[None]]:
    """Give what to call at each point. Raises `UsageError`."""
    text = os.environ.get(VARIABLE, "")
    return FaultPoint.parse(text).reached if text else nothing
