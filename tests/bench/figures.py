"""From moves to medians, ratios and targets. Pure; used by `tables` and `__main__`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.moves import Move

QUANTITIES: dict[str, Callable[[Move], float]] = {
    "downtime": lambda move: move.downtime_us,
    "total": lambda move: move.total_us,
    "bytes": lambda move: move.sent_bytes,
}
# (MiB, quantity) -> largest ratio of phaul to bare CRIU by hand that is good enough.
TARGETS = {
    (16, "downtime"): 0.50,
    (256, "downtime"): 0.40,
    (256, "total"): 0.70,
    (1024, "downtime"): 0.40,
    (1024, "total"): 0.70,
}


@dataclass(frozen=True, slots=True)
class Pair:
    """One move by phaul and one by hand, one right after the other."""

    phaul: Move
    by_hand: Move


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity of one size, over all pairs: medians, and the ratios phaul / by hand pair by pair."""

    mib: int
    quantity: str
    phaul: float
    by_hand: float
    ratio: float
    smallest_ratio: float
    largest_ratio: float

    @property
    def target(self) -> float | None:
        """The largest ratio that is good enough, None where nothing was promised."""
        return TARGETS.get((self.mib, self.quantity))

    @property
    def reached(self) -> bool:
        """Whether the median of the ratios is good enough."""
        return self.target is None or self.ratio <= self.target


def compare(mib: int, pairs: Sequence[Pair]) -> tuple[Comparison, ...]:
    """Compare every quantity; `pairs` has at least one."""
    return tuple(_compare(mib, quantity, pairs) for quantity in QUANTITIES)


def _compare(mib: int, quantity: str, pairs: Sequence[Pair]) -> Comparison:
    value = QUANTITIES[quantity]
    # Ratios pair by pair: the machine's speed drifts over minutes, far less between two moves.
    ratios = [value(pair.phaul) / value(pair.by_hand) for pair in pairs]
    return Comparison(
        mib=mib,
        quantity=quantity,
        phaul=statistics.median(value(pair.phaul) for pair in pairs),
        by_hand=statistics.median(value(pair.by_hand) for pair in pairs),
        ratio=statistics.median(ratios),
        smallest_ratio=min(ratios),
        largest_ratio=max(ratios),
    )
