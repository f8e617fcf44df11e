"""Lines of a log that others can cause as often as they like: the first at once, then one a while, with a count."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 10.0
MOST_KEYS = 256


class Seldom:
    """Says when it is time for a line."""

    def __init__(self, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}  # when it was said last, and how often it was not since

    def times(self, key: str) -> int:
        """How often it has happened since it was last said, if it is to be said now; else 0."""
        now = self._clock()
        said, unsaid = self._seen.pop(key, (now - self._seconds, 0))
        due = now - said >= self._seconds
        self._seen[key] = (now, 0) if due else (said, unsaid + 1)
        if len(self._seen) > MOST_KEYS:
            del self._seen[next(iter(self._seen))]
        return unsaid + 1 if due else 0
