"""Seeing a migration through: events in, screen out, and what Ctrl-C means meanwhile. Used by `migrate` and `watch`.

The migration lives in the agent. Nothing here can harm it: leaving, crashing or closing the terminal changes nothing,
and only the answer "cancel" asks for a rollback.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phaul.agent.client import AgentClient
from phaul.cli.console import make_console
from phaul.cli.screens import Screen
from phaul.cli.view import MigrationView, advance
from phaul.errors import InDoubtError, PhaulError, UnreachableError, UsageError
from phaul.rpc.v1.agent_pb2 import MigrationEvent

RECONNECT_SECONDS = 15.0  # a restarted agent is back within a few seconds
RECONNECT_PAUSE_SECONDS = 0.5
SIGNAL_STATUS = 128  # a shell's exit status of what a signal ended is this plus the signal's number
DEFECT_STATUS = 70
QUESTION = "[c]ancel and roll back, [l]eave it running, or go on [w]atching? (w) "


@dataclass(frozen=True, slots=True)
class _StreamEnded:
    """There will be no further events."""

    error: PhaulError | None


@dataclass(frozen=True, slots=True)
class _Interrupted:
    """A signal came."""

    number: int


@dataclass(frozen=True, slots=True)
class _Typed:
    """A line came from the terminal; "" at its end."""

    line: str


@dataclass(frozen=True, slots=True)
class _Note:
    """Something to say to a person."""

    text: str


_Input = MigrationEvent | _StreamEnded | _Interrupted | _Typed | _Note


async def follow(
    socket_path: Path, migration_id: str, screen: Screen, *, interactive: bool, cancels: bool = False
) -> int:
    """Show a migration until it has ended or the person leaves; gives the exit status.

    SIGINT asks what to do where `interactive`, and leaves where not or when it comes again; SIGTERM leaves. Where it
    `cancels`, the first of either does that.
    Raises `InDoubtError` where the agent went away and did not come back.
    """
    follower = _Follower(socket_path, migration_id, screen, interactive, cancels)
    with follower.signals():
        return await follower.run()


class _Follower:
    """One queue takes in whatever happens, so that nothing here runs side by side.

    Owns the terminal's input while `_asking`.
    """

    def __init__(self, socket_path: Path, migration_id: str, screen: Screen, interactive: bool, cancels: bool) -> None:
        self._cancels = cancels
        self._socket_path = socket_path
        self._migration_id = migration_id
        self._screen = screen
        self._interactive = interactive
        self._inputs: asyncio.Queue[_Input] = asyncio.Queue()
        self._view = MigrationView()
        self._asking = False

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM in as inputs."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self._inputs.put_nowait, _Interrupted(number))
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def run(self) -> int:
        pump = asyncio.create_task(self._pump())
        try:
            while True:
                status = await self._take(await self._inputs.get())
                if status is not None:
                    return status
        finally:
            self._stop_asking()
            self._screen.pause()
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _take(self, taken: _Input) -> int | None:
        match taken:
            case MigrationEvent():
                return self._take_event(taken)
            case _StreamEnded(error):
                raise error or InDoubtError("the agent ended the stream of events before the migration had ended")
            case _Interrupted() if self._cancels:
                self._cancels = False
                await self._cancel()
                return None
            case _Interrupted(number):
                if number == signal.SIGINT and self._interactive and not self._asking:
                    self._ask()
                    return None
                return self._leave(number)
            case _Typed(line):
                return await self._answer(line)
            case _Note(text):
                self._screen.note(text)
                return None

    def _take_event(self, event: MigrationEvent) -> int | None:
        before, self._view = self._view, advance(self._view, event)
        if self._view is before:
            return None  # seen before the connection was lost
        if self._asking and self._view.outcome:
            self._stop_asking()
            print()  # the question had no answer: end its line
        self._screen.show(event, before, self._view)
        if not self._view.outcome:
            return None
        self._screen.finish(self._view)
        if self._view.outcome == "completed":
            return 0
        return self._view.error.exit_status if self._view.error else DEFECT_STATUS

    async def _answer(self, line: str) -> int | None:
        self._stop_asking()
        choice = line.strip().lower()[:1]
        if line == "" or choice == "l":
            return self._leave(signal.SIGINT)
        if choice == "c":
            await self._cancel()
        self._screen.resume()
        return None

    async def _cancel(self) -> None:
        try:
            async with AgentClient(self._socket_path) as client:
                reply = await client.cancel(self._migration_id)
        except PhaulError as error:
            self._screen.note(f"It could not be cancelled: {error.message}")
            return
        if reply.accepted:
            self._screen.note("Cancelling: what was done is being undone.")
        else:
            self._screen.note(f"It cannot be cancelled any more: {reply.reason or 'it is past COMMIT'}")

    def _leave(self, number: int) -> int:
        if self._asking:
            self._stop_asking()
            print()
        status = SIGNAL_STATUS + number
        self._screen.detached(self._view, self._migration_id, status)
        return status

    def _ask(self) -> None:
        self._screen.pause()
        console = make_console()
        console.print("The migration goes on in the agent meanwhile. Ctrl-C again leaves it running.", style="dim")
        console.print(QUESTION, end="", style="bold")
        self._asking = True
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._read_line)

    def _stop_asking(self) -> None:
        if self._asking:
            self._asking = False
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())

    def _read_line(self) -> None:
        line = os.read(sys.stdin.fileno(), 1024)  # a terminal hands out whole lines
        self._inputs.put_nowait(_Typed(line.decode(errors="replace")))

    async def _pump(self) -> None:
        """Bring the events in, over a new connection where the agent was restarted, then say that there are no more."""
        loop = asyncio.get_running_loop()
        seen = False
        give_up_at: float | None = None
        while True:
            try:
                async with AgentClient(self._socket_path) as client:
                    async for event in client.watch(self._migration_id):
                        seen, give_up_at = True, None
                        self._inputs.put_nowait(event)
                        if event.HasField("finished"):
                            return
                failure = UnreachableError("the agent ended the stream of events")
            except UnreachableError as error:
                failure = error
            except PhaulError as error:
                doubt = _doubt(self._migration_id, error) if seen and isinstance(error, UsageError) else error
                self._inputs.put_nowait(_StreamEnded(doubt))
                return
            if not seen:
                self._inputs.put_nowait(_StreamEnded(failure))
                return
            if give_up_at is None:
                give_up_at = loop.time() + RECONNECT_SECONDS
                self._inputs.put_nowait(_Note("The agent does not answer; trying again for a while."))
            if loop.time() >= give_up_at:
                self._inputs.put_nowait(_StreamEnded(_doubt(self._migration_id, failure)))
                return
            await asyncio.sleep(RECONNECT_PAUSE_SECONDS)


def _doubt(migration_id: str, cause: PhaulError) -> InDoubtError:
    """What an agent did that went away in the middle of a migration, only it can say: it reads its journal."""
    doubt = InDoubtError(
        f"the agent of this host went away during the migration: {cause.message}",
        hint=f"Start it (`systemctl start phaul-agent`); `phaul status {migration_id}` then says where it runs.",
    )
    doubt.__cause__ = cause
    return doubt
