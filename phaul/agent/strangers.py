"""Connections that have not yet shown who they are: how many there may be, and who must go for another.

Used by what listens for other hosts. Whoever is honest is no stranger for more than milliseconds. Where there are too
many, the oldest goes of the address that has most: so nobody keeps others out by connecting, however often they do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable

STRANGERS = 64


class Strangers:
    """Those of one listening socket."""

    def __init__(self, most: int = STRANGERS) -> None:
        self._most = most
        self._drop: dict[Hashable, tuple[str, Callable[[], None]]] = {}
        self._of: defaultdict[str, dict[Hashable, None]] = defaultdict(dict)  # in the order in which they came

    def __len__(self) -> int:
        return len(self._drop)

    def add(self, key: Hashable, address: str, drop: Callable[[], None]) -> None:
        """One has come; `drop` breaks its connection."""
        if len(self._drop) >= self._most:
            most = max(self._of.values(), key=len)
            _, leave = self._drop[oldest := next(iter(most))]
            self.discard(oldest)
            leave()
        self._drop[key] = (address, drop)
        self._of[address][key] = None

    def discard(self, key: Hashable) -> None:
        """It is no stranger any more, or has gone."""
        if found := self._drop.pop(key, None):
            address, _ = found
            del self._of[address][key]
            if not self._of[address]:
                del self._of[address]
