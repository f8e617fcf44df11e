"""A directory in the place of another host's agent: what the coordinator of a dump, and the settlement of one, talk to.

Made by `agent.stores` for a destination that is a directory. Memory comes over a page channel of this host, as from
another one: so that a dump can be broken off, has its memory compared, and is what a migration is restored from. Where
a destination restores, this seals the directory: from then on it holds a whole copy.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from phaul.agent.messages import from_message, to_message
from phaul.agent.page_listener import ExpectedPages, PageListener, ReceivedFiles
from phaul.criu.images import encode_pagemap, image_files
from phaul.errors import TransferError
from phaul.migration import at_rest
from phaul.migration.coordinator import SMALL_IMAGES_BYTES
from phaul.migration.facts import (
    AddressFacts,
    ConnectionFacts,
    DestinationFacts,
    FileFacts,
    HookRun,
    HostFacts,
    WorkloadFacts,
)
from phaul.migration.forecast import Outcome
from phaul.migration.hooks import HookScene
from phaul.migration.host import Host
from phaul.migration.page_images import HashedImage, PageImage, Runs
from phaul.migration.peer import Aborted, PageChannel, Reservation, RestoredCopy, Resumed
from phaul.migration.recovery import Word
from phaul.migration.reserving import room_bytes
from phaul.rpc.v1 import facts_pb2
from phaul.store import directory as store
from phaul.store.directory import Manifest
from phaul.system.memory import page_size_bytes
from phaul.transfer.image_stream import ImageWriter, chunks
from phaul.transfer.page_channel import open_page_channel
from phaul.units import format_bytes

LOOPBACK = "127.0.0.1"
PLENTY_BYTES = 1 << 60  # nothing is restored in memory


class StorePeer:
    """`PeerAgent` on one directory. Owns a page receiver from `prepare` to `close`.

    Args:
        is_restoring: whether a restore of this ID is under way from any directory.
        left_running: what the manifest shall say.
    """

    def __init__(self, path: Path, host: Host, is_restoring: Callable[[str], bool]) -> None:
        self._path = path
        self._host = host
        self._is_restoring = is_restoring
        self._listener: PageListener | None = None
        self._pages: ExpectedPages | None = None
        self._facts: WorkloadFacts | None = None
        self.left_running = False

    @property
    def name(self) -> str:
        """As a destination that is no host is named."""
        return at_rest.destination_of(str(self._path))

    def look_at(self, facts: WorkloadFacts) -> None:
        """This is the workload that will be dumped."""
        self._facts = facts

    async def observe(
        self,
        ids: Sequence[int],
        files: Sequence[FileFacts],
        hooks: Sequence[str] = (),
        addresses: Sequence[AddressFacts] = (),
        macs: Sequence[str] = (),
    ) -> DestinationFacts:
        """This host, with all that the workload has here, and nothing of it in the way. Raises `PreflightError`."""
        assert self._facts is not None
        needed = room_bytes(self._facts.memory_bytes)
        await asyncio.to_thread(store.require_room, self._path, needed, format_bytes(needed))
        host = dataclasses.replace(
            await self._host.describe(),
            memory_available_bytes=PLENTY_BYTES,
            most_memory_bytes=0,
            free_huge_page_bytes=self._facts.huge_page_bytes,
            macs=(),
            network_names=(),
            device_numbers=(),
        )
        seen = tuple(dataclasses.replace(file, locked=False) for file in files)
        local = await self._host.network.local_addresses()
        if self._facts.has_own_network:
            local = ()
        return DestinationFacts(host, seen, local_addresses=local)

    async def run_hooks(self, stage: str, scene: HookScene, deadline_seconds: float) -> tuple[HookRun, ...]:
        """It has none."""
        return ()

    async def prepare(self, reservation: Reservation) -> PageChannel:
        """Begin the directory, and receive pages into it."""
        await asyncio.to_thread(store.begin, self._path, reservation.migration_id)
        self._listener = PageListener(page_size_bytes(), encode_pagemap)
        await self._listener.start(LOOPBACK, 0)
        self._pages = self._listener.expect(self._path, room_bytes(reservation.memory_bytes))
        return await open_page_channel(LOOPBACK, self._listener.port, self._pages.token)

    async def reopen(self, migration_id: str) -> PageChannel:
        """There are no rounds."""
        raise TransferError("the page channel of a dump broke")

    async def send_images(self, migration_id: str, directory: Path) -> int:
        """Copy them."""

        def copy() -> int:
            writer = ImageWriter(self._path, SMALL_IMAGES_BYTES)
            try:
                for image in image_files(directory):
                    for chunk in chunks(image):
                        writer.write(chunk)
                writer.close()
            finally:
                writer.discard()
            return writer.bytes

        return await asyncio.to_thread(copy)

    async def hashed_pages(self, migration_id: str, pending: Sequence[PageImage]) -> tuple[HashedImage, ...]:
        """What has come, hashed."""
        return await ReceivedFiles().hashed(await asyncio.shield(self._expected.received), pending)

    async def received_content(self, migration_id: str, name: str, runs: Runs) -> bytes:
        """A block of it."""
        return await ReceivedFiles().content(await asyncio.shield(self._expected.received), name, runs)

    async def restore(self, migration_id: str, unaccepted: Sequence[ConnectionFacts] = ()) -> RestoredCopy:
        """Seal the directory. Raises `TransferError` with no whole dump in it."""
        assert self._facts is not None
        clock = self._host.clock
        begun_us = clock.monotonic_us()
        received = await asyncio.shield(self._expected.received)
        _, files, _ = await self._host.workload.observe((), self._facts.files)
        facts = dataclasses.replace(self._facts, files=_as_dumped(self._facts.files, files))
        source = await self._host.describe()
        said = said_of(at_rest.as_kept(facts), source, clock.unix_us(), left_running=self.left_running)
        sealing = asyncio.ensure_future(asyncio.to_thread(store.seal, self._path, said))
        try:
            await asyncio.shield(sealing)
        except asyncio.CancelledError:
            await asyncio.wait([sealing])  # what it writes is about to be removed
            raise
        return RestoredCopy(facts.root_pid, received.page_bytes, clock.monotonic_us() - begun_us)

    async def resume(self, migration_id: str) -> Resumed:
        """The dump stands: there is nothing to be done."""
        return Resumed()

    async def learn(self, migration_id: str, outcome: Outcome) -> None:
        """A directory expects nothing."""

    async def abort(self, migration_id: str, reason: str, deadline_seconds: float = 0) -> Aborted:
        """Remove what there is of this dump."""
        if self._pages is not None:
            await self._pages.stopped()
        try:
            await asyncio.to_thread(store.remove, self._path, migration_id)
        except OSError as error:
            return Aborted((f"{self._path}, an unfinished dump: {error.strerror}",))
        return Aborted()

    async def close(self) -> None:
        """Give the page receiver back."""
        if self._listener is not None:
            await self._listener.close()

    async def own_address(self) -> str:
        """There is no network between."""
        return ""

    async def word(self, migration_id: str) -> Word:
        """Whether the dump is whole; or, to a restore of it, whether that goes on."""
        match await asyncio.to_thread(store.holds, self._path, migration_id):
            case True:
                return Word.HELD
            case False:
                return Word.RESERVED
            case None:
                return Word.UNDECIDED if self._is_restoring(migration_id) else Word.ABORTED

    @property
    def _expected(self) -> ExpectedPages:
        assert self._pages is not None, "nothing is prepared"
        return self._pages


def said_of(facts: WorkloadFacts, source: HostFacts, unix_us: int, *, left_running: bool) -> dict[str, Any]:
    """What a manifest says beside the images."""
    return {
        "phaul": source.phaul_version,
        "criu": source.criu_version,
        "kernel": source.kernel_release,
        "host": source.host_name,
        "command": facts.tasks[0].command.encode(errors="replace").decode(),
        "dumped_unix_us": unix_us,
        "left_running": left_running,
        "source": json_format.MessageToDict(to_message(source, facts_pb2.HostFacts), preserving_proto_field_name=True),
        "workload": json_format.MessageToDict(
            to_message(facts, facts_pb2.WorkloadFacts), preserving_proto_field_name=True
        ),
    }


def facts_of(manifest: Manifest) -> tuple[WorkloadFacts, HostFacts]:
    """Read it back: the workload, and the host that it was dumped on. Raises `PreflightError`."""
    try:
        workload = json_format.ParseDict(
            manifest.facts["workload"], facts_pb2.WorkloadFacts(), ignore_unknown_fields=True
        )
        source = json_format.ParseDict(manifest.facts["source"], facts_pb2.HostFacts(), ignore_unknown_fields=True)
        return from_message(workload, WorkloadFacts), from_message(source, HostFacts)
    except (KeyError, ValueError, json_format.ParseError) as error:
        raise store.damaged("its facts make no sense", str(error)) from error


def _as_dumped(held: Sequence[FileFacts], now: Sequence[FileFacts]) -> tuple[FileFacts, ...]:
    """With the sizes that they have while the workload stands still, or a moment after."""
    sizes = {each.path: each.size_bytes for each in now if each.exists}
    return tuple(dataclasses.replace(each, size_bytes=sizes.get(each.path, each.size_bytes)) for each in held)
