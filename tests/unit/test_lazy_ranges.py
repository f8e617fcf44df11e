"""What is still to be loaded, against a plain model: a dictionary from page to where its content lies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phaul.criu.lazy_ranges import Run, Unloaded

PAGE = 4096
LAST = 64

page = st.integers(0, LAST - 1)


@st.composite
def tables(draw: st.DrawFn) -> list[Run]:
    """Runs that do not overlap, in any order, with distinct contents."""
    runs = []
    at = 0
    offset = 0
    while at < LAST and draw(st.booleans()):
        start = at + draw(st.integers(0, 4))
        end = start + draw(st.integers(1, 8))
        runs.append(Run(start * PAGE, end * PAGE, draw(st.integers(0, 2)), offset * PAGE))
        offset += end - start
        at = end
    return list(draw(st.permutations(runs)))


def pages_of(unloaded: Unloaded) -> dict[int, tuple[int, int]]:
    """Each page to its content; fails where runs overlap or go down."""
    found: dict[int, tuple[int, int]] = {}
    last = -1
    for run in unloaded:
        assert run.start < run.end
        assert run.start > last
        last = run.end - 1
        for address in range(run.start, run.end, PAGE):
            found[address // PAGE] = (run.file, run.offset + address - run.start)
    assert unloaded.bytes == len(found) * PAGE
    return found


@given(tables(), st.lists(st.tuples(page, st.integers(1, 20), st.none() | page), max_size=6))
def test_drops_and_moves_what_the_task_drops_and_moves(
    runs: list[Run], changes: list[tuple[int, int, int | None]]
) -> None:
    unloaded = Unloaded(runs)
    model = pages_of(unloaded)
    for start, count, to in changes:
        first, last = start * PAGE, (start + count) * PAGE
        if to is None:
            unloaded.drop(first, last)
            model = {at: content for at, content in model.items() if not start <= at < start + count}
        elif abs(to - start) >= count:  # mremap refuses what overlaps itself
            unloaded.move(first, last, to * PAGE)
            moved = {at + to - start: content for at, content in model.items() if start <= at < start + count}
            there = range(to, to + count)
            model = {at: each for at, each in model.items() if not start <= at < start + count and at not in there}
            model |= moved
        assert pages_of(unloaded) == model


@given(tables(), page)
def test_a_fault_is_answered_with_what_lies_around_it(runs: list[Run], at: int) -> None:
    unloaded = Unloaded(runs)
    model = pages_of(unloaded)
    found = unloaded.around(at * PAGE + 17, 4 * PAGE)
    if at not in model:
        assert found is None
        return
    assert found is not None
    assert found.start <= at * PAGE < found.end
    assert found.end - found.start <= 4 * PAGE
    assert pages_of(Unloaded([found])).items() <= model.items()


@given(tables(), st.integers(1, 9))
def test_goes_through_everything_once(runs: list[Run], limit: int) -> None:
    unloaded = Unloaded(runs)
    model = pages_of(unloaded)
    child = unloaded.copy()
    loaded: dict[int, tuple[int, int]] = {}
    while unloaded:
        run = unloaded.next(limit * PAGE)
        assert run.end - run.start <= limit * PAGE
        piece = pages_of(Unloaded([run]))
        assert not piece.keys() & loaded.keys()
        loaded |= piece
        unloaded.drop(run.start, run.end)
    assert loaded == model
    assert pages_of(child) == model
