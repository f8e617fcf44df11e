"""The other host as the coordinator and the settlement see it: its agent, and the channel on which memory goes there.

As `interfaces`, which this is a part of: protocols only, no driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phaul.migration.facts import AddressFacts, DestinationFacts, FileFacts
from phaul.migration.interfaces import Digests, PageImage
from phaul.migration.recovery import Word


class PageChannel(Protocol):
    """The source's end of the connection on which the memory travels."""

    def fileno(self) -> int:
        """The connected TCP socket, for CRIU."""
        ...

    def delivered_bytes(self) -> int:
        """How much the destination has acknowledged so far."""
        ...

    def close(self) -> None:
        """Shut the connection down; who still sends into it fails. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Reservation:
    """What the destination shall hold ready for one migration."""

    migration_id: str
    source_host: str
    source_port: int  # where the source's agent can be asked, on the address that it calls from
    source_peer: str  # the same as HOST:PORT; the destination fills it in
    root_pid: int
    command: str
    memory_bytes: int
    addresses: tuple[AddressFacts, ...]  # the device is the destination's
    keep_connections: bool
    shell_job: bool


@dataclass(frozen=True, slots=True)
class RestoredCopy:
    """What the destination says of a copy that it holds at the gate."""

    pid: int
    page_bytes: int
    restore_us: int


class PeerAgent(Protocol):
    """The destination's agent, as the coordinator sees it. Every call is idempotent by migration and name.

    Raises `UnreachableError` where no answer came within the deadline, else the error that the peer reported.
    """

    @property
    def name(self) -> str:
        """HOST:PORT as it was reached."""
        ...

    async def observe(self, ids: Sequence[int], files: Sequence[FileFacts]) -> DestinationFacts:
        """What the destination is, and has of what the workload needs."""
        ...

    async def prepare(self, reservation: Reservation) -> PageChannel:
        """Have room and a page receiver made, and connect to that."""
        ...

    async def send_images(self, migration_id: str, directory: Path) -> int:
        """Send every image file of a directory; returns their bytes once all are verified over there."""
        ...

    async def received_pages(self, migration_id: str) -> tuple[PageImage, ...]:
        """What arrived over the page channel; waits until all has."""
        ...

    async def page_digests(self, migration_id: str) -> Digests:
        """The same, hashed over there."""
        ...

    async def received_chunk(self, migration_id: str, name: str, number: int) -> bytes:
        """One chunk (128 KiB, counted from 0) of an image as it arrived."""
        ...

    async def restore(self, migration_id: str) -> RestoredCopy:
        """Have the copy restored and held at its gate, its addresses in place behind a fence."""
        ...

    async def resume(self, migration_id: str) -> tuple[str, ...]:
        """Say that the source tree is dead: the copy runs from here on. Returns warnings."""
        ...

    async def abort(self, migration_id: str, reason: str) -> tuple[str, ...]:
        """Have everything undone over there; returns what could not be."""
        ...

    async def close(self) -> None:
        """Give the connection back."""
        ...

    async def own_address(self) -> str:
        """The address of this host that the kernel uses towards the peer; "" where it cannot be told."""
        ...

    async def word(self, migration_id: str) -> Word:
        """Ask how the migration stands over there; `Word.NO_ANSWER` where nobody answers. Never raises."""
        ...
