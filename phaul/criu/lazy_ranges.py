"""Which memory of a task is still to be loaded, and where in the images it lies. Pure; kept by `criu.loader`.

The task runs meanwhile: what it unmaps or discards need not be loaded any more, what it moves (mremap) is loaded where
it went, and a child that it forks needs all that its parent did.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Memory from `start` to `end` whose content lies in a pages file (by its number) from `offset` on, in bytes."""

    start: int
    end: int
    file: int
    offset: int

    def cut(self, start: int, end: int) -> Run:
        """Give the part between two addresses, which must overlap it."""
        first, last = max(start, self.start), min(end, self.end)
        return Run(first, last, self.file, self.offset + first - self.start)


class Unloaded:
    """The runs of one task that are still to be loaded. Invariant: they do not overlap, and go up."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = sorted(runs, key=lambda run: run.start)
        self._starts = [run.start for run in self._runs]
        self.bytes = sum(run.end - run.start for run in self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def copy(self) -> Unloaded:
        """The same for a child."""
        return Unloaded(self._runs)

    def next(self, limit: int) -> Run:
        """Give what to load next, at most `limit` bytes of it: from the top, where taking it away costs nothing."""
        last = self._runs[-1]
        return last.cut(max(last.start, last.end - limit), last.end)

    def around(self, address: int, window: int) -> Run | None:
        """Give what to load for a fault: of the run that covers it, what lies in the same `window` (a power of 2)."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or self._runs[index].end <= address:
            return None
        start = address & ~(window - 1)
        return self._runs[index].cut(start, start + window)

    def drop(self, start: int, end: int) -> list[Run]:
        """Take away what lies between two addresses; give it."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._runs[first].end <= start:
            first += 1
        last = first
        taken: list[Run] = []
        left: list[Run] = []
        while last < len(self._runs) and self._runs[last].start < end:
            run = self._runs[last]
            if run.start < start:
                left.append(run.cut(run.start, start))
            if run.end > end:
                left.append(run.cut(end, run.end))
            taken.append(run.cut(start, end))
            last += 1
        self._runs[first:last] = left
        self._starts[first:last] = [run.start for run in left]
        self.bytes -= sum(run.end - run.start for run in taken)
        return taken

    def move(self, start: int, end: int, to: int) -> None:
        """What lay between two addresses lies from `to` on now."""
        by = to - start
        moved = [Run(run.start + by, run.end + by, run.file, run.offset) for run in self.drop(start, end)]
        self.drop(to, to + end - start)  # mremap unmaps what it lands on; told too, but later
        self._runs = sorted([*self._runs, *moved], key=lambda run: run.start)
        self._starts = [run.start for run in self._runs]
        self.bytes += sum(run.end - run.start for run in moved)
