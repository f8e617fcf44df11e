"""How fast a workload writes, and what a migration would come to. Pure: measured in `workloads.dirty_rate`.

Called by `agent.dirty_rates` for `phaul dirty-rate`. The forecast rehearses pre-copy: round after round over the
measured working-set curve, each decided by `convergence.decide`, as a migration would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from phaul.migration.convergence import Action, Contract, decide, explain
from phaul.migration.forecast import Costs, Round

ROUND_US = 50_000  # what a round costs besides its pages: CRIU is started, the tree seized
BETWEEN_ROUNDS_US = 5_000


class DirtyMethod(StrEnum):
    """How it was found out what was written to."""

    SOFT_DIRTY = "soft_dirty"  # the kernel notes it: exact
    SAMPLING = "sampling"  # pages chosen at random are hashed and compared: an estimate


class MemoryKind(StrEnum):
    """What memory is used for, as its mapping tells."""

    HEAP = "heap"
    STACK = "stack"
    ANONYMOUS = "anonymous"
    SHARED = "shared"  # between processes, without a file: shm_open, memfd_create, MAP_SHARED|MAP_ANONYMOUS
    FILE = "file"  # private: pages of a mapped file that were written to
    SHARED_FILE = "shared_file"  # written back to its file: does not travel


@dataclass(frozen=True, slots=True)
class DirtyMapping:
    """Mappings of one kind and path, of all processes together."""

    kind: MemoryKind
    path: str  # "" where it has none
    resident_bytes: int
    dirty_bytes: int  # in all of the time measured
    uncertainty_bytes: int  # `dirty_bytes` is this much more or less, in 19 of 20 cases


@dataclass(frozen=True, slots=True)
class DirtyPoint:
    """Of the working-set curve: what got dirty, each page counted once, in a time."""

    interval_us: int
    dirty_bytes: int


@dataclass(frozen=True, slots=True)
class DirtyRate:
    """What was measured. Shared files are in `mappings`, but in no sum: they do not travel."""

    root_pid: int
    command: str
    processes: int
    method: DirtyMethod
    interval_us: int
    memory_bytes: int  # what would have to travel
    dirty_bytes: int
    uncertainty_bytes: int
    pages_watched: int  # all of them, or the sample
    mappings: tuple[DirtyMapping, ...]  # what is written to most first
    curve: tuple[DirtyPoint, ...]  # shortest first

    @property
    def dirty_bytes_per_second(self) -> float:
        """Distinct pages, over the whole of the time measured. Over a shorter time it is more."""
        return self.dirty_bytes * 1e6 / self.interval_us if self.interval_us else 0.0


@dataclass(frozen=True, slots=True)
class Link:
    """What is known of the way to a host."""

    bytes_per_second: int
    source: str  # where that is known from, for a person


@dataclass(frozen=True, slots=True)
class DowntimeForecast:
    """What a migration to a host would come to."""

    destination: str
    bytes_per_second: int
    link_source: str
    learnt_from: int  # earlier migrations to that host; 0: what freezing and restoring cost is assumed
    max_downtime_us: int  # wished for
    stop_and_copy_us: int
    pre_copy_us: int  # the downtime, or the lowest that would be reached
    pre_copy_fits: bool
    rounds: int
    message: str  # "" where pre-copy fits, else why not
    hint: str  # what would make it fit
    pre_copy_hindrance: str = ""  # why these hosts cannot do it at all
    refusal: str = ""  # why preflight would refuse the workload, as things stand


@dataclass(frozen=True, slots=True)
class DirtyRateRequest:
    """What a person asks for. `destination` is "" where no forecast is wished for."""

    root_pid: int
    seconds: float
    destination: str
    max_downtime_seconds: float


@dataclass(frozen=True, slots=True)
class DirtyRateReport:
    """The answer."""

    rate: DirtyRate
    dirty_bytes_per_second: int
    forecast: DowntimeForecast | None = None


def dirty_in(curve: Sequence[DirtyPoint], interval_us: float, memory_bytes: int) -> int:
    """Read the working-set curve at any time; `curve` is the shortest first.

    Between two points, and beyond the last, what is dirty grows with a power of the time, at most 1 as dirty pages do
    not get clean. Below the first it is in proportion to a power of one half, as `forecast` takes it to be: more than
    in proportion to the time, since the shorter the interval, the more distinct pages a second.
    """
    known = [point for point in curve if point.interval_us > 0 and point.dirty_bytes > 0]
    if not known or interval_us <= 0:
        return 0
    after = next((index for index, point in enumerate(known) if point.interval_us >= interval_us), len(known) - 1)
    if after == 0:
        exponent = _exponent(known[0], known[1]) if len(known) > 1 else 0.5
        base = known[0]
    else:
        exponent, base = _exponent(known[after - 1], known[after]), known[after]
    share: float = (interval_us / base.interval_us) ** exponent
    return min(memory_bytes, round(base.dirty_bytes * share))


def _exponent(one: DirtyPoint, other: DirtyPoint) -> float:
    if one.interval_us == other.interval_us:
        return 1.0
    slope = math.log(other.dirty_bytes / one.dirty_bytes) / math.log(other.interval_us / one.interval_us)
    return min(1.0, max(0.0, slope))


def rehearse(rate: DirtyRate, destination: str, link: Link, costs: Costs, contract: Contract) -> DowntimeForecast:
    """Say what downtime to expect of this workload over this link. `contract` must not throttle."""
    us_per_byte = 1e6 / max(1, link.bytes_per_second)
    rounds: list[Round] = []
    while True:
        interval_us = rounds[-1].send_us + BETWEEN_ROUNDS_US if rounds else 0
        sent = dirty_in(rate.curve, interval_us, rate.memory_bytes) if rounds else rate.memory_bytes
        send_us = round(ROUND_US + sent * us_per_byte)
        rounds.append(Round(len(rounds) + 1, sent, sent, send_us, 0, interval_us))
        decision = decide(rounds, contract, costs)
        if decision.action is not Action.ANOTHER_ROUND:
            break
    fits = decision.action is Action.FREEZE
    message, hint = ("", "") if fits else explain(decision, contract)
    return DowntimeForecast(
        destination=destination,
        bytes_per_second=link.bytes_per_second,
        link_source=link.source,
        learnt_from=costs.learnt_from,
        max_downtime_us=contract.max_downtime_us,
        stop_and_copy_us=round(costs.fixed_us + rate.memory_bytes * us_per_byte),
        pre_copy_us=decision.prediction.downtime_us if fits else decision.best_us,
        pre_copy_fits=fits,
        rounds=len(rounds),
        message=message,
        hint=hint,
    )
