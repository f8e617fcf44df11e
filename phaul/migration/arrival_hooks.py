"""The action scripts of a migration that comes in: those that run within a restore, and those at the end.

Owned by an `Arrival`; `arrivals` runs those of the other stages when the source asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from phaul.migration.both_hooks import refuse_failed
from phaul.migration.events import Role
from phaul.migration.facts import HookRun
from phaul.migration.hooks import HostHooks, Stage
from phaul.migration.host import Host
from phaul.migration.journal import Journal
from phaul.migration.peer import Reservation
from phaul.migration.reserving import scene_of


class ArrivalHooks(HostHooks):
    """The hooks on the destination."""

    def __init__(self, host: Host, reservation: Reservation, journal: Journal, images: Callable[[], Path]) -> None:
        super().__init__(host.hooks, Role.DESTINATION, scene_of(reservation), journal, images)
        self._setting_up: tuple[HookRun, ...] | None = None
        self.decided = False  # past COMMIT nothing but the copy counts: none that fails stops its being restored again
        self._last: asyncio.Task[tuple[HookRun, ...]] | None = None

    @property
    def of_restore(self) -> tuple[HookRun, ...]:
        """What has run within the latest restore."""
        return self._setting_up or ()

    def restore_begins(self) -> None:
        """CRIU is about to restore: its namespaces have to be set up (again)."""
        self._setting_up = None

    async def set_up(self) -> None:
        """The copy's namespaces are there: run those of setup-namespaces. Raises `HookError`."""
        self._setting_up = await self.run(Stage.SETUP_NAMESPACES)
        if not self.decided:
            refuse_failed(self._setting_up, "destination")

    async def restored(self) -> None:
        """The copy is complete. For one without namespaces of its own CRIU has no such stage: its hooks run now."""
        if self._setting_up is None:
            await self.set_up()

    def resumed(self) -> None:
        """The copy runs: begin those of post-resume, once."""
        self._last = self._last or asyncio.create_task(self.run_once(Stage.POST_RESUME))

    async def settled(self) -> tuple[HookRun, ...]:
        """Wait until those of post-resume have ended."""
        return await asyncio.shield(self._last) if self._last is not None else ()
