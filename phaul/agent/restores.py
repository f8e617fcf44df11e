"""Restoring a dump on this host: a migration that comes in from a directory. Owned by `agent.server`.

The images are copied into memory, verified on the way, and changed there where the copy gets another identity: the
directory is only read. All the rest is what `migration.arrivals` does for a migration from another host, gates, fence
and recovery included. There is no other host to decide: what does not run yet when the agent ends is thrown away.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from phaul.agent.store_peer import facts_of
from phaul.errors import DefectError, LostError, NotRestoredError, PhaulError, PolicyError, PreflightError
from phaul.migration import at_rest, new_addresses, new_identity, new_own_addresses, own_network, preflight
from phaul.migration.arrivals import Arrivals
from phaul.migration.facts import DestinationFacts, HostFacts, MigrationRequest, Severity, WorkloadFacts
from phaul.migration.host import Host
from phaul.migration.peer import Resumed
from phaul.migration.plan import reservation
from phaul.migration.undo import see_through
from phaul.rpc.v1 import agent_pb2
from phaul.store import directory as store
from phaul.store.directory import Manifest

PROGRESS_SECONDS = 0.25

Tell = Callable[[agent_pb2.RestoreDumpEvent], None]


@dataclass(frozen=True, slots=True)
class _Complete:
    """`ReceivedPages` that did not come over a page channel."""

    page_bytes: int


class _Copied:
    """`Reception` of images that are copied: there once `complete` was called."""

    token = b""

    def __init__(self) -> None:
        self.received: asyncio.Future[_Complete] = asyncio.get_running_loop().create_future()

    def complete(self, page_bytes: int) -> None:
        """All are there."""
        if not self.received.done():
            self.received.set_result(_Complete(page_bytes))

    def cancel(self) -> None:
        """Nobody shall wait any more."""
        self.received.cancel()

    async def stopped(self) -> None:
        """The same."""
        self.cancel()

    def forget(self) -> None:
        """Nothing is kept."""


class Restores:
    """The restores of one agent."""

    def __init__(self, host: Host, arrivals: Arrivals) -> None:
        self._host = host
        self._arrivals = arrivals
        self._under_way: set[str] = set()

    def is_under_way(self, migration_id: str) -> bool:
        """Whether a restore goes on in this agent."""
        return migration_id in self._under_way

    async def restore(self, directory: Path, identity: MigrationRequest, tell: Tell) -> None:
        """Restore a dump; the last that is told says what runs. Cancelling before that undoes all.

        Raises `PolicyError` with nothing touched, and `NotRestoredError` with nothing touched or all undone.

        Args:
            identity: of which only the copy's new identity counts.
        """
        try:
            await self._restore(directory, identity, tell)
        except PreflightError as error:
            raise NotRestoredError(error.message, hint=error.hint, detail=error.detail) from error

    async def _restore(self, directory: Path, identity: MigrationRequest, tell: Tell) -> None:
        migration_id = secrets.token_hex(4)
        begun_us = self._host.clock.monotonic_us()
        manifest = await asyncio.to_thread(store.read, directory)
        facts, source = facts_of(manifest)
        begun = agent_pb2.RestoreBegun(
            migration_id=migration_id,
            command=str(manifest.facts.get("command", "")),
            host_name=source.host_name,
            dumped_unix_us=int(manifest.facts.get("dumped_unix_us", 0)),
            bytes=manifest.bytes,
        )
        tell(agent_pb2.RestoreDumpEvent(begun=begun))
        asked = dataclasses.replace(
            identity, root_pid=facts.root_pid, destination=at_rest.destination_of(str(directory))
        )
        here = await self._preflight(asked, facts, source, tell)
        self._under_way.add(migration_id)
        try:
            pid, resumed = await self._bring_up(migration_id, asked, manifest, facts, source, here, tell)
        finally:
            self._under_way.discard(migration_id)
        for warning in resumed.warnings:
            _warn(warning, tell)
        duration_us = self._host.clock.monotonic_us() - begun_us
        tell(agent_pb2.RestoreDumpEvent(restored=agent_pb2.RestoredDump(pid=pid, duration_us=duration_us)))

    async def _preflight(
        self, asked: MigrationRequest, facts: WorkloadFacts, source: HostFacts, tell: Tell
    ) -> HostFacts:
        """Compare this host with what the copy will use, as for a migration. Raises `PreflightError`."""
        host = self._host
        arriving = new_identity.as_arriving(asked, new_addresses.as_arriving(asked, facts))
        probed = dict.fromkeys((*own_network.probed(arriving.network), *own_network.probed(facts.network)))
        macs = new_identity.wanted_macs(asked, facts)
        (taken, seen, occupied), known, local, claims, heard = await asyncio.gather(
            host.workload.observe(preflight.wanted_ids(facts), facts.files),
            host.describe(),
            host.network.local_addresses(),
            host.network.claims(tuple(probed)),
            host.network.heard(macs),
        )
        here = DestinationFacts(known, seen, taken, local, occupied, heard_macs=heard)
        problems = (
            *at_rest.claim_problems(claims, arriving, str(at_rest.directory_of(asked.destination))),
            *at_rest.identity_problems(asked, facts),
            *preflight.compare(asked, facts, source, here),
            *new_identity.problems(asked, facts, source, here),
        )
        problems = at_rest.advised(problems, known.host_name)
        refusing = [each for each in problems if each.severity is Severity.REFUSES]
        if refusing:
            raise preflight.refusal(refusing)
        for problem in problems:
            _warn(problem.message, tell)
        return known

    async def _bring_up(
        self,
        migration_id: str,
        asked: MigrationRequest,
        manifest: Manifest,
        facts: WorkloadFacts,
        source: HostFacts,
        here: HostFacts,
        tell: Tell,
    ) -> tuple[int, Resumed]:
        directory = Path(at_rest.directory_of(asked.destination) or "/")
        pages = _Copied()
        resuming: asyncio.Future[Resumed] | None = None
        reserved = reservation(
            migration_id,
            facts,
            asked,
            addresses=(),
            network=new_identity.at_destination(asked, facts.network, here, migration_id),
            source_host=source.host_name,
            source_port=0,
            destination_host=here.host_name,
            source_peer=asked.destination,
        )
        try:
            images = await self._arrivals.prepare_for(reserved, pages)
        except PhaulError as error:
            raise _not_restored(error, ()) from error
        try:
            await _copy(directory, manifest, images, tell)
            await self._host.engine.change_identity(
                images,
                tuple((each.old, each.new) for each in asked.new_addresses),
                new_own_addresses.readdressing(asked, facts.network),
                tuple(new_identity.macs(asked, facts.network).items()),
                asked.host_name,
            )
            pages.complete(sum(each.size_bytes for name, each in manifest.images.items() if name.startswith("pages-")))
            copy = await self._arrivals.restore(migration_id)
            resuming = asyncio.ensure_future(self._arrivals.resume(migration_id))
            return copy.pid, await asyncio.shield(resuming)
        except asyncio.CancelledError:
            if resuming is None:
                await see_through(self._undo(migration_id, "the restore was cancelled"))
            raise
        except LostError as error:
            left = await see_through(self._undo(migration_id, error.message, lost=True))
            hint = "The dump is as it was: try again, or on another host."
            raise NotRestoredError(error.message, hint=hint, detail="\n".join((error.detail, *left))) from error
        except Exception as error:
            left = await see_through(self._undo(migration_id, str(error)))
            raise _not_restored(error, left) from error

    async def _undo(self, migration_id: str, reason: str, *, lost: bool = False) -> tuple[str, ...]:
        undo = self._arrivals.give_up if lost else self._arrivals.abort
        try:
            return (await undo(migration_id, reason)).leftovers
        except PhaulError as error:
            return (error.message,)


def _not_restored(error: Exception, leftovers: Sequence[str]) -> PhaulError:
    """The error to raise once all but `leftovers` is undone."""
    if isinstance(error, PreflightError | PolicyError | DefectError) and not leftovers:
        return error
    if isinstance(error, PhaulError):
        message, hint, detail = error.message, error.hint, error.detail
    else:
        message, hint, detail = f"the dump could not be restored: {error}", "", ""
    left = [f"left behind: {each}" for each in leftovers]
    return NotRestoredError(message, hint=hint, detail="\n".join(filter(None, [detail, *left])))


async def _copy(directory: Path, manifest: Manifest, images: Path, tell: Tell) -> None:
    done = 0
    cancelled = False

    def copied(count: int) -> None:
        nonlocal done
        if cancelled:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        done += count

    copying = asyncio.ensure_future(asyncio.to_thread(store.copy_out, directory, manifest, images, copied))
    try:
        while not (await asyncio.wait([copying], timeout=PROGRESS_SECONDS))[0]:
            progress = agent_pb2.RestoreProgress(done_bytes=done, total_bytes=manifest.bytes)
            tell(agent_pb2.RestoreDumpEvent(progress=progress))
    except asyncio.CancelledError:
        cancelled = True
        await asyncio.wait([copying])
        raise
    copying.result()


def _warn(message: str, tell: Tell) -> None:
    tell(agent_pb2.RestoreDumpEvent(warning=agent_pb2.Warning(message=message)))
