"""What `arrivals` works with: pages that have come, channels that are waited for, journals, and who is told of it all.

As `interfaces`: protocols only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from phaul.errors import PhaulError
from phaul.migration.events import Outcome
from phaul.migration.journal import Journal
from phaul.migration.page_images import HashedImage, PageImage, Runs
from phaul.migration.peer import Reservation


class ReceivedPages(Protocol):
    """Everything that has come once a dump was complete, with what came in the rounds before it."""

    @property
    def page_bytes(self) -> int:
        """Their content."""
        ...


class Reception(Protocol):
    """One page channel that is waited for or under way."""

    @property
    def token(self) -> bytes:
        """What opens it, once."""
        ...

    @property
    def received(self) -> Awaitable[ReceivedPages]:
        """Gives what came over the channel once a dump has arrived, the newest at the time of asking."""
        ...

    def cancel(self) -> None:
        """Stop waiting; break the channel if it is under way."""
        ...

    async def stopped(self) -> None:
        """The same, and wait until nothing of what has come is left."""
        ...

    def forget(self) -> None:
        """Keep nothing of what was received."""
        ...


class PageReader(Protocol):
    """Reads back what came over a page channel."""

    async def hashed(self, received: ReceivedPages, pending: Sequence[PageImage]) -> tuple[HashedImage, ...]:
        """Hash what came in the newest dump, and what else of `pending` is there."""
        ...

    async def content(self, received: ReceivedPages, name: str, runs: Runs) -> bytes:
        """Give a block of an image."""
        ...


class Journals(Protocol):
    """The journals of a host, by migration."""

    def of(self, migration_id: str) -> Journal:
        """Give one, begun if need be."""
        ...

    def find(self, migration_id: str) -> Journal | None:
        """Give one that exists."""
        ...

    def forget(self, migration_id: str) -> None:
        """Keep no object of one that has ended."""
        ...


class ArrivalObserver(Protocol):
    """Who wants to know how migrations come and go: the history."""

    def arrived(self, reservation: Reservation) -> None:
        """A reservation is about to be made."""
        ...

    def settled(self, migration_id: str, outcome: Outcome, error: PhaulError | None) -> None:
        """A migration has ended here, or cannot end for now (IN_DOUBT)."""
        ...
