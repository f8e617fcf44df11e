"""Letting a copy run on the destination before its pages are loaded: when that helps, and who loads them. No I/O.

`migration.destination` asks; `criu.lazy_pages` implements `Loader`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from phaul.units import MIB

FEATURE = "lazy_pages"  # of CRIU on the destination: userfaultfd with the events that tell of a changing memory

# Restores of 1 GiB from huge-page tmpfs took 0.29 to 0.49 s, lazily 20 to 28 ms (`make bench`, Linux 6.18, CRIU 4.2.1).
LOADING_US_PER_MIB = 280.0
MACHINERY_US = 8_000.0


def helps(memory_bytes: int, features: Collection[str]) -> bool:
    """Predict that a lazy restore takes less of the downtime than one that loads everything first.

    Eagerly, the pause grows with the memory. Lazily it does not, but CRIU registers each mapping and hands it over, and
    what the workload touches first then costs it a fault each. Worth it only where much more is saved than that.
    """
    return FEATURE in features and memory_bytes / MIB * LOADING_US_PER_MIB > 2 * MACHINERY_US


class LoadingState(StrEnum):
    """How far the loading of a lazily restored copy's pages is."""

    LOADING = "loading"
    FAILING = "failing"  # tried again for ever; a task that needs a missing page waits
    DONE = "done"
    LOST = "lost"  # who loaded them was killed: the copy has pages of zeros instead of its own, and must not go on


@dataclass(frozen=True, slots=True)
class Loading:
    """The same in numbers."""

    state: LoadingState
    left_bytes: int = 0
    total_bytes: int = 0


class Loader(Protocol):
    """A process that puts the pages of a lazily restored copy in place; it outlives the agent until it has done so.

    Owns nothing of the copy. It ends by itself: unused when its agent dies or `close` is called, used when all is in
    place or the restore was given up.
    """

    async def ready(self) -> None:
        """Wait until a restore can use it. Raises `RestoreError`."""
        ...

    async def close(self) -> None:
        """It is not needed, if it was not used so far."""
        ...
