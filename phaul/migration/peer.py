"""The other host as the coordinator and the settlement see it: its agent, and the channel on which memory goes there.

As `interfaces`, which this is a part of: protocols only, no driver.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phaul.migration.facts import (
    AddressFacts,
    Compression,
    ConnectionFacts,
    DestinationFacts,
    FileFacts,
    HookRun,
    NetworkFacts,
)
from phaul.migration.forecast import Outcome
from phaul.migration.hooks import HookScene
from phaul.migration.page_images import HashedImage, PageImage, Runs
from phaul.migration.recovery import Word

MOST_UNACCEPTED = 4096  # connections of which is told; as many as `somaxconn` lets wait at a socket by default


class PageChannel(Protocol):
    """The source's end of the connection on which the memory travels."""

    async def begin_dump(
        self,
        *,
        bandwidth_bytes_per_second: int,
        compress: Compression,
        device: str,
        frozen: bool,
        sample: Callable[[], Awaitable[Sequence[bytes]]],
    ) -> bool:
        """Make ready for the next dump, and have the one before be over; say whether its memory goes compressed.

        Takes up to a tenth of a second when it has to find out how fast the link is. Raises `TransferError`.

        Args:
            bandwidth_bytes_per_second: never faster than this; 0 where nobody asked for a cap.
            device: the network device towards the destination, "" where it is not known.
            frozen: the workload stands still meanwhile, so only what was asked for slows it down.
            sample: gives pieces of the memory that will be sent.
        """
        ...

    def fileno(self) -> int:
        """The connected TCP socket for CRIU; that of the dump that was begun last."""
        ...

    def pace(self, bytes_per_second: int | None) -> None:
        """Hold the connection to a rate until the next dump begins; None lifts it."""
        ...

    def sent_bytes(self) -> int:
        """How much CRIU has sent so far, before compression."""
        ...

    def delivered_bytes(self) -> int:
        """How much the destination has acknowledged so far, as it went over the wire."""
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
    hooks: tuple[str, ...] = ()  # paths of action scripts that are run at every stage
    destination_host: str = ""  # as it named itself
    close_connections: bool = False  # the copy's TCP connections are closed ones
    source_name: str = ""  # what the source's certificate calls it; the destination fills it in
    network: NetworkFacts | None = None  # of the workload alone; its outer ends are named as they shall be there


@dataclass(frozen=True, slots=True)
class RestoredCopy:
    """What the destination says of a copy that it holds at the gate."""

    pid: int
    page_bytes: int
    restore_us: int
    hooks: tuple[HookRun, ...] = ()  # that ran meanwhile
    lazy: bool = False  # its pages are put in place while it runs


@dataclass(frozen=True, slots=True)
class Aborted:
    """What the destination says of having undone its part."""

    leftovers: tuple[str, ...] = ()
    hooks: tuple[HookRun, ...] = ()


@dataclass(frozen=True, slots=True)
class Resumed:
    """What the destination says of a copy that runs. `running_for_us`: as the answer was sent; 0 where not known."""

    warnings: tuple[str, ...] = ()
    running_for_us: int = 0


class PeerAgent(Protocol):
    """The destination's agent, as the coordinator sees it. Every call is idempotent by migration and name.

    Raises `UnreachableError` where no answer came within the deadline, else the error that the peer reported.
    """

    @property
    def name(self) -> str:
        """HOST:PORT as it was reached."""
        ...

    async def observe(
        self,
        ids: Sequence[int],
        files: Sequence[FileFacts],
        hooks: Sequence[str] = (),
        addresses: Sequence[AddressFacts] = (),
        macs: Sequence[str] = (),
    ) -> DestinationFacts:
        """What the destination is, and has of what the workload needs.

        `hooks` are paths of action scripts; `addresses` those that may move, on the devices of the destination; `macs`
        those that nobody may have.
        """
        ...

    async def run_hooks(self, stage: str, scene: HookScene, deadline_seconds: float) -> tuple[HookRun, ...]:
        """Have the hooks of a stage run over there, up to the first that fails; wait for those of post-resume."""
        ...

    async def prepare(self, reservation: Reservation) -> PageChannel:
        """Have room and a page receiver made, and connect to that."""
        ...

    async def reopen(self, migration_id: str) -> PageChannel:
        """Have everything forgotten that came over the page channel so far, and connect anew."""
        ...

    async def send_images(self, migration_id: str, directory: Path) -> int:
        """Send every image file of a directory; returns their bytes once all are verified over there."""
        ...

    async def hashed_pages(self, migration_id: str, pending: Sequence[PageImage]) -> tuple[HashedImage, ...]:
        """What arrived in the newest dump, hashed over there, and what else of `pending` is there.

        Waits until all of that dump has come.
        """
        ...

    async def received_content(self, migration_id: str, name: str, runs: Runs) -> bytes:
        """A block of an image as it lies there."""
        ...

    async def restore(self, migration_id: str, unaccepted: Sequence[ConnectionFacts] = ()) -> RestoredCopy:
        """Have the copy restored and held at its gate, its addresses in place behind a fence.

        `unaccepted` are connections that it does not have, and whose clients shall be told once it runs.
        """
        ...

    async def resume(self, migration_id: str) -> Resumed:
        """Say that the source tree is dead: the copy runs from here on."""
        ...

    async def learn(self, migration_id: str, outcome: Outcome) -> None:
        """Tell what a migration that is over has taught: the next may go the other way. Never raises."""
        ...

    async def abort(self, migration_id: str, reason: str, deadline_seconds: float = 0) -> Aborted:
        """Have everything undone over there, its hooks of rollback run, which may take `deadline_seconds`."""
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
