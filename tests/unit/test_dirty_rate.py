"""The working-set curve, the rehearsal of a migration over it, the estimate from a sample, and what mappings are."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.migration.convergence import Contract
from phaul.migration.dirty_rate import DirtyMethod, DirtyPoint, DirtyRate, Link, MemoryKind, dirty_in, rehearse
from phaul.migration.forecast import Costs
from phaul.system.procfs import parse_smaps
from phaul.units import MIB
from phaul.workloads.dirty_rate import NORMAL_95, Pages, area_of, estimate

GIB = 1024 * MIB
curves = st.lists(
    st.tuples(st.integers(1_000, 10_000_000), st.integers(0, 512 * MIB)),
    min_size=1,
    max_size=4,
    unique_by=lambda x: x[0],
).map(
    lambda drawn: [
        DirtyPoint(interval_us, dirty)
        for (interval_us, _), dirty in zip(sorted(drawn), sorted(d for _, d in drawn), strict=True)
    ]
)


def rate(*curve: DirtyPoint, memory_bytes: int = GIB) -> DirtyRate:
    return DirtyRate(1, "x", 1, DirtyMethod.SAMPLING, 1, memory_bytes, 1, 0, 1, (), curve)


@given(curves, st.floats(1, 1e8), st.floats(1, 1e8))
def test_more_gets_dirty_in_a_longer_time_and_never_more_than_there_is(
    curve: list[DirtyPoint], one: float, other: float
) -> None:
    short, long = sorted((one, other))
    assert 0 <= dirty_in(curve, short, GIB) <= dirty_in(curve, long, GIB) + 1 <= GIB + 1


@given(curves)
def test_the_curve_goes_through_its_points(curve: list[DirtyPoint]) -> None:
    for point in curve:
        if point.dirty_bytes == 0:
            continue  # nothing can be read off it
        assert dirty_in(curve, point.interval_us, GIB) == pytest.approx(point.dirty_bytes, rel=1e-6, abs=1)


def test_a_workload_that_does_not_write_fits() -> None:
    forecast = rehearse(
        rate(DirtyPoint(10**6, 0)), "b", Link(100 * MIB, ""), Costs(GIB, 10_000, 20_000, 0.0), Contract()
    )
    assert forecast.pre_copy_fits
    assert forecast.pre_copy_us == pytest.approx(30_000, rel=0.1)
    assert forecast.rounds == 2
    assert forecast.stop_and_copy_us == pytest.approx(30_000 + 1024e4, rel=0.01)


def test_a_workload_that_writes_too_much_does_not_fit_and_it_is_said_what_would() -> None:
    writing = rate(DirtyPoint(200_000, 100 * MIB), DirtyPoint(2_000_000, 800 * MIB))
    forecast = rehearse(writing, "b", Link(100 * MIB, ""), Costs(GIB, 10_000, 20_000, 0.0), Contract())
    assert not forecast.pre_copy_fits
    assert forecast.pre_copy_us > 500_000
    assert "--max-downtime" in forecast.hint
    fast = rehearse(writing, "b", Link(4000 * MIB, ""), Costs(GIB, 10_000, 20_000, 0.0), Contract())
    assert fast.pre_copy_fits


@pytest.mark.parametrize("changed", [0, 3, 50, 197, 200])
def test_a_sample_says_how_sure_it_is(changed: int) -> None:
    """19 samples of 20 hold the truth within their uncertainty: 5,000 pages of which a share changed, 200 looked at."""
    pages, watched = 5_000, 200
    truth = pages * changed // watched
    dice = random.Random(changed)
    memory = [page < truth for page in range(pages)]
    hits, sizes = 0, []
    for _ in range(400):
        found = estimate(pages, watched, sum(dice.sample(memory, watched)))
        hits += abs(found.dirty - truth) <= NORMAL_95 * found.variance**0.5
        sizes.append(found.dirty)
    assert hits / 400 > 0.92
    assert statistics.mean(sizes) == pytest.approx(truth, rel=0.1, abs=5)


def test_who_looked_at_all_is_sure() -> None:
    assert estimate(100, 100, 40) == estimate(100, 100, 40)
    assert estimate(100, 100, 40).variance == 0
    assert estimate(100, 100, 40).dirty == 40
    assert estimate(0, 0, 0).dirty == 0


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 10**6), st.integers(1, 50)), max_size=8), st.integers(1, 60)
)
def test_pages_are_chosen_from_all_runs_once(drawn: list[tuple[int, int, int]], most: int) -> None:
    runs = [(pid, index * 2_000_000 + first, count) for index, (pid, first, count) in enumerate(drawn)]
    chosen = Pages(runs).chosen(most)
    everything = {(pid, first + offset) for pid, first, count in runs for offset in range(count)}
    assert set(chosen) <= everything
    assert len(chosen) == len(set(chosen)) == min(most, len(everything))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("5581a000-5581b000 rw-p 00000000 00:00 0                          [heap]", MemoryKind.HEAP),
        ("7ffe0000-7ffe1000 rw-p 00000000 00:00 0                          [stack]", MemoryKind.STACK),
        ("7f000000-7f001000 rw-p 00000000 00:00 0 ", MemoryKind.ANONYMOUS),
        ("7f000000-7f001000 rw-p 00000000 00:00 0                          [anon:jit]", MemoryKind.ANONYMOUS),
        ("7f000000-7f001000 rw-s 00000000 00:01 12                         /dev/zero (deleted)", MemoryKind.SHARED),
        ("7f000000-7f001000 rw-s 00000000 00:01 12                         /memfd:x (deleted)", MemoryKind.SHARED),
        ("7f000000-7f001000 rw-s 00000000 00:01 12                         /dev/shm/pool", MemoryKind.SHARED),
        ("7f000000-7f001000 rw-p 00000000 08:01 12                         /usr/lib/libc.so.6", MemoryKind.FILE),
        ("7f000000-7f001000 rw-s 00000000 08:01 12                         /srv/data.db", MemoryKind.SHARED_FILE),
        ("7f000000-7f001000 r--s 00000000 08:01 12                         /srv/data.db", None),
        ("7ffe0000-7ffe1000 r-xp 00000000 00:00 0                          [vdso]", None),
        ("7ffe0000-7ffe1000 r--p 00000000 00:00 0                          [vvar]", None),
        ("7f000000-7f001000 rw-s 00000000 00:06 12                         /dev/dri/card0", None),
    ],
)
def test_what_a_mapping_is(line: str, kind: MemoryKind | None) -> None:
    area = area_of(parse_smaps(line)[0])
    assert (area[0] if area else None) == kind
