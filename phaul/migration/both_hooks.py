"""Action scripts over both hosts, from the coordinator's side: first the source's, then the destination's, in order.

Used by the coordinator at each stage. What one tells goes into the migration's events at once. A failure before COMMIT
is a `HookError`; past it a warning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phaul.errors import HookError, PhaulError, PreflightError
from phaul.migration.events import EventSink, HookRan, Role
from phaul.migration.facts import (
    AddressFacts,
    CheckReport,
    HookFacts,
    HookRun,
    MigrationRequest,
    Problem,
    WorkloadFacts,
)
from phaul.migration.hooks import HookScene, HostHooks, Stage, at_stage
from phaul.migration.host import Host
from phaul.migration.journal import Journal
from phaul.migration.peer import PeerAgent


def hook_problems(report: CheckReport) -> tuple[Problem, ...]:
    """Say which hooks must not be run; where one is meant to, nothing goes without it."""
    sides = (
        ("source", report.source, report.source_hooks),
        ("destination", report.destination, report.destination_hooks),
    )
    return tuple(
        Problem(
            "hook_refused",
            f"The action script {hook.path} on the {side} {host.host_name} must not be run: {hook.problem}.",
            "Put that right (owned by root, writable by nobody else, executable), or turn it off by moving it away or "
            f"renaming it to {hook.path.rpartition('/')[2]}.disabled.",
        )
        for side, host, hooks in sides
        for hook in hooks
        if hook.problem
    )


def describe(ran: HookRun | HookRan, where: str) -> str:
    """Say in one clause which hook failed, and how."""
    return f"the action script {ran.path} on the {where} failed at {ran.stage}: {ran.problem}"


def refuse_failed(runs: Sequence[HookRun], where: str) -> None:
    """Raise `HookError` where one failed before COMMIT."""
    for ran in runs:
        if ran.problem:
            raise HookError(describe(ran, where), detail=ran.output)


class BothHooks:
    """The hooks of one migration on both hosts. Knows none before `found`."""

    def __init__(
        self,
        migration_id: str,
        request: MigrationRequest,
        host: Host,
        peer: PeerAgent,
        events: EventSink,
        journal: Journal,
        warn: Callable[[str], None],
    ) -> None:
        self._id = migration_id
        self._request = request
        self._host = host
        self._peer = peer
        self._events = events
        self._journal = journal
        self._warn = warn
        self._here: HostHooks | None = None
        self._there: tuple[HookFacts, ...] = ()
        self._resumed: asyncio.Task[None] | None = None
        self.undone_there: tuple[HookRun, ...] = ()  # what the destination has run as it undid its part
        self.images: Path | None = None  # on this host, once there is room for them

    def found(self, facts: WorkloadFacts, report: CheckReport, addresses: tuple[AddressFacts, ...]) -> None:
        """PREFLIGHT has looked at both hosts."""
        scene = HookScene(
            self._id,
            facts.root_pid,
            facts.tasks[0].command,
            report.source.host_name,
            report.destination.host_name,
            addresses,
            self._request.hooks,
        )
        self._here = HostHooks(self._host.hooks, Role.SOURCE, scene, self._journal, lambda: self.images)
        self._there = report.destination_hooks

    def as_data(self) -> dict[str, Any]:
        """What the journal keeps for hooks that an agent after this one may have to run."""
        scene = self._known.scene
        return {"hooks": list(scene.files), "hosts": [scene.source, scene.destination]}

    @property
    def destination_host(self) -> str:
        """As it named itself."""
        return self._known.scene.destination

    @property
    def rollback_seconds(self) -> float:
        """How long the destination's hooks of rollback may take in all."""
        return self._deadline_seconds(Stage.ROLLBACK)

    async def preflight(self) -> None:
        """Those that may still refuse. Raises `PreflightError`: nothing was touched."""
        try:
            await self.run(Stage.PREFLIGHT)
        except HookError as error:
            raise PreflightError(error.message, hint=error.hint, detail=error.detail) from error

    async def run(self, stage: Stage, *, there: bool = True) -> None:
        """Run those of a stage on the source, and then on the destination. Raises `HookError` where one fails."""
        self.tell(Role.SOURCE, await self._known.run(stage))
        if there and (deadline_seconds := self._deadline_seconds(stage)):
            self.tell(Role.DESTINATION, await self._peer.run_hooks(stage, self._known.scene, deadline_seconds))

    def tell(self, where: Role, runs: tuple[HookRun, ...]) -> None:
        """Put what has run into the events. Raises `HookError` for one that failed."""
        for ran in runs:
            self._emit(where, ran)
        refuse_failed(runs, where)

    def resumed(self) -> None:
        """The copy runs: begin those of post-resume on both hosts, beside what else there is to do."""
        self._resumed = asyncio.create_task(self._post_resume())

    async def settled(self) -> None:
        """Wait until those of post-resume have ended."""
        if self._resumed is not None:
            await self._resumed

    async def rolled_back(self, reason: str) -> None:
        """Everything is undone: tell what ran on the destination meanwhile, and run those of this host, once."""
        for ran in self.undone_there:
            self._tell_late(Role.DESTINATION, ran)
        if self._here is not None:
            await self._here.run_once(Stage.ROLLBACK, reason=reason, told=lambda ran: self._tell_late(Role.SOURCE, ran))

    @property
    def _known(self) -> HostHooks:
        assert self._here is not None, "preflight is not over"
        return self._here

    def _deadline_seconds(self, stage: Stage) -> float:
        return sum(hook.timeout_seconds for hook in at_stage(self._there, stage))

    async def _post_resume(self) -> None:
        stage = Stage.POST_RESUME
        await asyncio.gather(
            self._known.run_once(stage, told=lambda ran: self._tell_late(Role.SOURCE, ran)), self._post_resume_there()
        )

    async def _post_resume_there(self) -> None:
        """The destination runs its own by itself; here they are only waited for."""
        deadline_seconds = self._deadline_seconds(Stage.POST_RESUME)
        if not deadline_seconds:
            return
        try:
            for ran in await self._peer.run_hooks(Stage.POST_RESUME, self._known.scene, deadline_seconds):
                self._tell_late(Role.DESTINATION, ran)
        except PhaulError as error:
            self._warn(f"how the action scripts of post-resume ended on the destination is not known: {error.message}")

    def _emit(self, where: Role, ran: HookRun) -> None:
        self._events.emit(
            HookRan(where, ran.stage, ran.path, ran.exit_status, ran.duration_us, ran.output, ran.problem)
        )

    def _tell_late(self, where: Role, ran: HookRun) -> None:
        self._emit(where, ran)
        if ran.problem:
            self._warn(describe(ran, where))
