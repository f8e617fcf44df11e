"""What makes sure that a restored copy runs only where somebody knows it; `criu.guard` implements it. No I/O."""

from __future__ import annotations

from typing import Protocol


class Guard(Protocol):
    """A process beside the engine that ends a copy whose engine ends before it was let run. It outlives the agent."""

    async def watch(self, engine_pid: int, root_pid: int, since_ticks: int) -> bool:
        """Guard a copy that is held at the gate; False where that is not possible.

        `since_ticks`: when the engine was started, in clock ticks since boot.
        """
        ...

    async def release(self) -> bool:
        """Let it run, whatever becomes of the engine. False where it was ended before that."""
        ...

    async def close(self) -> None:
        """It is not needed any more; one that still watches ends with the engine."""
        ...
