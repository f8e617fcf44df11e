"""What one move cost, however it was made. Shared by `by_phaul`, `by_hand` and `tables`."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("phaul", "by hand")


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a move: from `start_us` (since the move began) for `duration_us`."""

    name: str
    start_us: float
    duration_us: float


@dataclass(frozen=True, slots=True)
class Move:
    """One move of the workload.

    Args:
        method: one of `METHODS`.
        downtime_us: the longest silence of the ticks, as the client's kernel saw it.
        total_us: from the first step until the workload ticks and the last step has ended, tidying up aside.
        sent_bytes: what both hosts sent meanwhile, by their devices' counters.
        reported_downtime_us: what the mover says itself; None for a move by hand.
        steps: what was done, by their start.
        statistics: CRIU's own, as "dump.frozen_time" and so on, in its units.
    """

    method: str
    source: str
    destination: str
    downtime_us: float
    total_us: float
    sent_bytes: int
    reported_downtime_us: float | None = None
    steps: tuple[Step, ...] = ()
    statistics: dict[str, int] | None = None
