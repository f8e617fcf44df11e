"""What downtime a final dump would cost now, judged by the rounds of pre-copy so far. Pure: no I/O, no clock.

Called by `convergence`, and by `phaul dirty-rate` for a workload that has had no round yet. The downtime is taken as
three parts:

- freezing: stopping the tree and dumping what is not memory. Does not depend on how much is dirty;
- pages: the memory that is dirty by then, at the pace that the rounds had;
- restoring: everything from the end of the dump until the copy runs. May grow with all of the memory.

The first and the last are learnt from earlier migrations between the same hosts (`Outcome`, kept by the caller). As
long as there is none they are multiples of how long a round stood still, which at least knows how fast the host is.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from phaul.units import MIB

# Of a first migration only, later ones know better. CRIU 4.2.1 in virtual machines: rounds stood still for 45 ms, the
# final dump took 180 ms besides its pages, the restore of 64 MiB 480 ms; of a Redis under load, 0.2, 0.6 and 2.2 s.
ASSUMED_FREEZE_PER_FROZEN = 4.0
ASSUMED_RESTORE_PER_FROZEN = 8.0
ASSUMED_RESTORE_PER_MIB_PER_FROZEN = 0.05
ASSUMED_FROZEN_US = 5_000  # where no round tells

HALF_LIFE_ROUNDS = 0.5  # the newest round weighs three times as much as all before it
ASSUMED_EXPONENT = 0.5  # of the working-set curve: halfway between "the same pages again" and "always others"
EXPONENT_DOUBT = 0.5  # how much the rounds must differ in length before what they say outweighs the assumption
ASSUMED_SHARE_OF_MEMORY = 0.5  # of a restore, where all restores so far were of one size
LEAST_SHARE_OF_PACE = 0.5  # at least this share of the fastest round's time per byte is for the bytes themselves
SAME_X = 0.1  # points closer than this share of the largest say nothing of the slope
SAME_SIZE = 3.0  # rounds that stand still for so many times longer or shorter may be those of the same workload
MOST_SCALING = 8.0
OUTCOMES_KEPT = 16
HALF_LIFE_OUTCOMES = 1.5  # hosts change, the first move is the slowest; above 1: the newest alone never outweighs all
WEIGHT_OF_WAY_BACK = 0.5  # of a migration from there to here: the two hosts may differ
FULL_SPEED_PERCENT = 100

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Round:
    """One finished round of pre-copy.

    `interval_us` is the time in which `page_bytes` were dirtied: from the freeze of the round before to the freeze of
    this one; 0 for the first round, which sends everything.
    """

    number: int  # from 1
    page_bytes: int  # content of pages, headers left out
    wire_bytes: int  # what went over the wire; fewer when compressed
    send_us: int  # from the start of the pre-dump until the destination had acknowledged everything
    frozen_us: int  # the tree stood still
    interval_us: int
    speed_percent: int = 100  # of its own speed that a throttle left the workload as the interval began


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a migration that has completed teaches about the hosts it went between. Plain data: see `as_data`."""

    memory_bytes: int
    frozen_us: int  # of a round, pages left out; 0 where there was no round
    freeze_us: int  # of the final dump, pages left out
    restore_us: int  # from the end of the dump until the copy ran
    lazy: bool = False  # by local lazy restore
    back: bool = False  # it went the other way

    def as_data(self) -> dict[str, Any]:
        """The JSON value to keep."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """The opposite of `as_data`."""
        return cls(
            int(data["memory_bytes"]),
            int(data["frozen_us"]),
            int(data["freeze_us"]),
            int(data["restore_us"]),
            bool(data["lazy"]),
            bool(data.get("back")),
        )


@dataclass(frozen=True, slots=True)
class Costs:
    """What a migration of this workload between these hosts costs besides sending dirty pages."""

    memory_bytes: int
    freeze_us: int
    restore_us: int
    restore_us_per_mib: float
    learnt_from: int = 0  # earlier migrations; 0: assumed

    @property
    def restoring_us(self) -> int:
        """Of all the memory."""
        return round(self.restore_us + self.restore_us_per_mib * self.memory_bytes / MIB)

    @property
    def fixed_us(self) -> int:
        """The downtime if nothing at all were dirty."""
        return self.freeze_us + self.restoring_us


@dataclass(frozen=True, slots=True)
class Prediction:
    """The downtime to expect if the workload were frozen now, and how it comes about."""

    freeze_us: int
    pages_us: int
    restore_us: int
    dirty_bytes: int  # by the time of the freeze
    interval_us: int  # in which they get dirty
    exponent: float  # dirty bytes grow with this power of the interval, 0 to 1
    us_per_byte: float  # to send
    wire_share: float  # bytes on the wire for each byte of a page
    measured: bool  # False: only one round so far, so that everything has to be taken for dirty

    @property
    def downtime_us(self) -> int:
        """All three parts."""
        return self.freeze_us + self.pages_us + self.restore_us

    @property
    def fixed_us(self) -> int:
        """What would remain if nothing were dirty."""
        return self.freeze_us + self.restore_us

    @property
    def dirty_bytes_per_second(self) -> float:
        """How fast distinct pages get dirty, over an interval of this length. Over a shorter one it is more."""
        return self.dirty_bytes * 1e6 / self.interval_us if self.interval_us else 0.0

    @property
    def throughput_bytes_per_second(self) -> float:
        """Content of pages that arrives in a second."""
        return 1e6 / self.us_per_byte if self.us_per_byte else 0.0


def line(
    points: Sequence[Point], *, least: float = 0.0, alone: float = 1.0, weights: Sequence[float] = ()
) -> tuple[float, float]:
    """Fit `y = fixed + slope * x` so that a single point that is off does not matter; gives (fixed, slope), both >= 0.

    The slope is the median of the slopes between all pairs, each weighed by how far apart the two lie (after Theil and
    Sen). So that neither part is negative it is not more than that of the flattest ray from the origin to a point, and
    at least `least` of it; where all points have about the same x it is `alone` of it. A faster link, which takes the
    same from every y for each unit of x, never raises any value of the line. `weights` are of the points, for the fixed
    part; left out, all are alike.
    """
    weights = weights or [1.0] * len(points)
    rays = [y / x for x, y in points if x > 0]
    apart = SAME_X * max((x for x, _ in points), default=0.0)
    if not rays:
        return _weighted_median([(y, weight) for (_, y), weight in zip(points, weights, strict=True)]), 0.0
    most = min(rays)
    pairs = [
        ((y - other_y) / (x - other_x), abs(x - other_x))
        for index, (x, y) in enumerate(points)
        for other_x, other_y in points[:index]
        if abs(x - other_x) > apart
    ]
    slope = min(most, max(most * least, _weighted_median(pairs))) if pairs else most * alone
    fixed = _weighted_median([(y - slope * x, weight) for (x, y), weight in zip(points, weights, strict=True)])
    return max(0.0, fixed), slope


def _weighted_median(values: Sequence[tuple[float, float]]) -> float:
    """Give the value with half of the weight on either side, or the middle of two such; 0 where there is none."""
    ordered = sorted(values)
    half = sum(weight for _, weight in ordered) / 2
    passed = 0.0
    for (value, weight), (after, _) in itertools.pairwise(ordered):
        passed += weight
        if math.isclose(passed, half):
            return (value + after) / 2
        if passed > half:
            return value
    return ordered[-1][0] if ordered else 0.0


def pace(rounds: Sequence[Round]) -> float:
    """Microseconds for each byte of a page, what a round costs besides left out. 0 where nothing was ever sent."""
    return line([(each.page_bytes, each.send_us) for each in rounds], least=LEAST_SHARE_OF_PACE)[1]


def standstill_us(rounds: Sequence[Round]) -> int:
    """How long a round stands still, whatever it sends. 0 where there was no round.

    Those of a throttled workload do not count where there are others: the engine works inside its tasks.
    """
    known = [each for each in rounds if each.speed_percent >= FULL_SPEED_PERCENT] or rounds
    return round(line([(each.page_bytes, each.frozen_us) for each in known], alone=0.0)[0])


def costs_of(
    rounds: Sequence[Round], memory_bytes: int, outcomes: Sequence[Outcome] = (), *, lazy: bool = False
) -> Costs:
    """Say what freezing and restoring will cost, from earlier migrations between the same two hosts, oldest first.

    A workload whose rounds stand still for clearly longer or shorter than those of an earlier one (more processes,
    more sockets) is taken to cost more or less in proportion. Where they differ by less, the hosts may be busier than
    they were, or it may be chance: half of it is believed, so to speak, which is the square root.
    """
    frozen_us = standstill_us(rounds) or ASSUMED_FROZEN_US
    known = [each for each in outcomes if each.lazy == lazy][-OUTCOMES_KEPT:]
    if not known:
        per_mib = 0.0 if lazy else frozen_us * ASSUMED_RESTORE_PER_MIB_PER_FROZEN
        return Costs(
            memory_bytes,
            round(frozen_us * ASSUMED_FREEZE_PER_FROZEN),
            round(frozen_us * ASSUMED_RESTORE_PER_FROZEN),
            per_mib,
        )
    scales = [_scaling(standstill_us(rounds), each.frozen_us) for each in known]
    freezes = [each.freeze_us * scale for each, scale in zip(known, scales, strict=True)]
    points = [(each.memory_bytes / MIB, each.restore_us * scale) for each, scale in zip(known, scales, strict=True)]
    ages = _weights(len(known), HALF_LIFE_OUTCOMES)
    weights = [age * (WEIGHT_OF_WAY_BACK if each.back else 1.0) for age, each in zip(ages, known, strict=True)]
    freeze = _weighted_median(list(zip(freezes, weights, strict=True)))
    fixed, per_mib = line(points, alone=0.0 if lazy else ASSUMED_SHARE_OF_MEMORY, weights=weights)
    return Costs(memory_bytes, round(freeze), round(fixed), per_mib, len(known))


def _scaling(frozen_us: int, earlier_us: int) -> float:
    if frozen_us <= 0 or earlier_us <= 0:
        return 1.0
    ratio = frozen_us / earlier_us
    believed = math.sqrt(min(SAME_SIZE, max(1 / SAME_SIZE, ratio)))
    beyond = ratio / SAME_SIZE if ratio > SAME_SIZE else min(1.0, ratio * SAME_SIZE)
    return min(MOST_SCALING, max(1 / MOST_SCALING, believed * beyond))


def outcome_of(
    rounds: Sequence[Round],
    *,
    memory_bytes: int,
    page_bytes: int,
    dump_us: int,
    downtime_us: int,
    lazy: bool = False,
) -> Outcome | None:
    """Say what a completed migration teaches; None where it had no round, so that nothing can be told apart.

    Args:
        page_bytes: content of pages in the final dump.
        dump_us: from the freeze until the dump was complete and its pages sent.
        downtime_us: from the freeze until the copy ran.
    """
    if not rounds:
        return None
    return Outcome(
        memory_bytes=memory_bytes,
        frozen_us=standstill_us(rounds),
        freeze_us=max(0, round(dump_us - pace(rounds) * page_bytes)),
        restore_us=max(0, downtime_us - dump_us),
        lazy=lazy,
    )


def predict(rounds: Sequence[Round], costs: Costs) -> Prediction:
    """Say what downtime to expect if the workload were frozen now. There must be a round; oldest first.

    How much is dirty by then is read off a working-set curve: in an interval t, `d * (t / t0) ** exponent` bytes get
    dirty, because a workload writes some pages again and again: the shorter the interval, the more distinct pages a
    second. The exponent is fitted to the rounds, the level is that of the newest rounds, or of the newest if that is
    more.
    """
    dirtying = [each for each in rounds if each.interval_us > 0]
    dirtying = [each for each in dirtying if each.speed_percent == rounds[-1].speed_percent] or dirtying
    sent = sum(each.page_bytes for each in rounds)
    wire_share = sum(each.wire_bytes for each in rounds) / sent if sent else 1.0
    us_per_byte = pace(rounds)
    interval_us = next_interval_us(rounds)
    exponent = ASSUMED_EXPONENT
    if dirtying:
        exponent = _exponent(dirtying)
        dirty = min(float(costs.memory_bytes), _dirty_bytes(dirtying, interval_us, exponent))
    else:
        dirty = float(max(each.page_bytes for each in rounds))
    return Prediction(
        freeze_us=costs.freeze_us,
        pages_us=round(dirty * us_per_byte),
        restore_us=costs.restoring_us,
        dirty_bytes=round(dirty),
        interval_us=interval_us,
        exponent=exponent,
        us_per_byte=us_per_byte,
        wire_share=wire_share,
        measured=bool(dirtying),
    )


def next_interval_us(rounds: Sequence[Round]) -> int:
    """From the freeze of the last round to a freeze now: as long as the round took, and what always comes between."""
    between = [after.interval_us - before.send_us for before, after in itertools.pairwise(rounds)]
    return rounds[-1].send_us + max(0, round(statistics.median(between)) if between else 0)


def _weights(count: int, half_life: float) -> list[float]:
    return [0.5 ** ((count - 1 - index) / half_life) for index in range(count)]


def _exponent(dirtying: Sequence[Round]) -> float:
    points = [
        (math.log(each.interval_us), math.log(each.page_bytes), weight)
        for each, weight in zip(dirtying, _weights(len(dirtying), HALF_LIFE_ROUNDS), strict=True)
        if each.page_bytes > 0
    ]
    total = sum(weight for *_, weight in points)
    if not total:
        return ASSUMED_EXPONENT
    mean_x = sum(x * weight for x, _, weight in points) / total
    mean_y = sum(y * weight for _, y, weight in points) / total
    spread = sum(weight * (x - mean_x) ** 2 for x, _, weight in points)
    together = sum(weight * (x - mean_x) * (y - mean_y) for x, y, weight in points)
    # Ridge: without a difference in length the rounds say nothing of how the dirty set grows.
    return min(1.0, max(0.0, (together + EXPONENT_DOUBT * ASSUMED_EXPONENT) / (spread + EXPONENT_DOUBT)))


def _dirty_bytes(dirtying: Sequence[Round], interval_us: int, exponent: float) -> float:
    levels: list[float] = [each.page_bytes * (interval_us / each.interval_us) ** exponent for each in dirtying]
    weights = _weights(len(levels), HALF_LIFE_ROUNDS)
    mean: float = sum(level * weight for level, weight in zip(levels, weights, strict=True)) / sum(weights)
    return max(mean, levels[-1])
