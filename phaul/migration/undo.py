"""What has been done and must be undone if the migration does not get through: an undo is queued when the act begins.

Used by the coordinator and the destination; the first rule of both is that no act stands without its undo beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from phaul.errors import DefectError, LeftoversError, PhaulError, PolicyError, RolledBackError

T = TypeVar("T")


class UndoStack:
    """Acts that can still be undone, in the order in which they were done.

    Invariant: each undo runs at most once, latest act first; one that fails does not keep the others from running.
    """

    def __init__(self) -> None:
        self._undos: list[tuple[str, Callable[[], Awaitable[object]]]] = []

    def add(self, what: str, undo: Callable[[], Awaitable[object]]) -> None:
        """Queue an undo. `what` names what is left behind if it fails, e.g. "the address 10.0.0.5/24 on eth0"."""
        self._undos.append((what, undo))

    def __len__(self) -> int:
        """How much would have to be undone."""
        return len(self._undos)

    def forget(self) -> None:
        """The acts stand for good."""
        self._undos.clear()

    async def unwind(self, but: int = 0) -> tuple[str, ...]:
        """Undo everything but the first so many acts; give what was left behind and why, one sentence each."""
        leftovers: list[str] = []
        while len(self._undos) > but:
            what, undo = self._undos.pop()
            try:
                await undo()
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the other undos must still run
                leftovers.append(f"{what}: {error}")
        return tuple(leftovers)


def rolled_back(error: PhaulError, leftovers: Sequence[str]) -> PhaulError:
    """Give the error to raise when everything was undone because of `error`, apart from `leftovers`."""
    if leftovers:
        return LeftoversError(
            f"{error.message}; the workload runs on the source, but something was left behind",
            hint=error.hint,
            detail="\n".join(filter(None, [error.detail, *leftovers])),
        )
    # A policy refuses in PREPARE at the latest: nothing of the workload was touched.
    if isinstance(error, RolledBackError | DefectError | PolicyError):
        return error
    return RolledBackError(error.message, hint=error.hint, detail=error.detail)


def as_undo(act: Callable[[], object]) -> Callable[[], Awaitable[None]]:
    """Make an undo of something that does not wait."""

    async def undo() -> None:
        act()

    return undo


async def see_through(act: Coroutine[Any, Any, T]) -> T:
    """Wait for something that must not be broken off, however often this task is cancelled meanwhile."""
    acting = asyncio.ensure_future(act)
    while not acting.done():
        try:
            await asyncio.shield(acting)
        except asyncio.CancelledError:
            continue
    return acting.result()


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has let go of what it used; how it ended is of no interest any more."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
