"""The three ways to show a migration that is under way: painted over on a terminal, line by line, or as JSON.

`follow` drives one of them; what is shown comes from `display` and `machine`.
"""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live

from phaul.cli import display
from phaul.cli.console import can_redraw, glyphs_for, make_console
from phaul.cli.failure import failure
from phaul.cli.machine import event_object, print_object
from phaul.cli.view import MigrationView
from phaul.errors import DefectError
from phaul.rpc.v1.agent_pb2 import MigrationEvent

REFRESHES_PER_SECOND = 10
PROGRESS_LINE_US = 2_000_000  # between two lines of progress, where nothing can be painted over


def now_unix_us() -> int:
    """Microseconds since 1970: the agent, on the same host, stamps its events with the same clock."""
    return time.time_ns() // 1000


class Screen(Protocol):
    """Shows one migration. Between `pause` and `resume` the terminal belongs to somebody else."""

    def show(self, event: MigrationEvent, before: MigrationView, after: MigrationView) -> None:
        """Take one more event in."""
        ...

    def pause(self) -> None:
        """Stop drawing, and leave the cursor on an empty line."""
        ...

    def resume(self) -> None:
        """Draw again."""
        ...

    def note(self, text: str) -> None:
        """Say something that is no event."""
        ...

    def detached(self, view: MigrationView, migration_id: str, exit_status: int) -> None:
        """Say that the migration goes on without us."""
        ...

    def finish(self, view: MigrationView) -> None:
        """Show how it ended."""
        ...


def make_screen(*, json_output: bool) -> Screen:
    """Choose how to show a migration here."""
    if json_output:
        return JsonScreen()
    console = make_console()
    return LiveScreen(console) if can_redraw(console) else PlainScreen(console)


class PlainScreen:
    """Line by line, for pipes, logs and terminals that cannot move the cursor."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._glyphs = glyphs_for(console)
        self._next_progress_us = 0

    def show(self, event: MigrationEvent, before: MigrationView, after: MigrationView) -> None:
        for line in display.plain_lines(before, after, event, self._glyphs):
            self._print(line)
        if event.HasField("progress") and event.unix_us >= self._next_progress_us:
            self._next_progress_us = event.unix_us + PROGRESS_LINE_US
            self._print(display.progress_line(after, event.unix_us, self._glyphs))

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def note(self, text: str) -> None:
        self._print(text)

    def detached(self, view: MigrationView, migration_id: str, exit_status: int) -> None:
        for line in _detached_lines(view, migration_id):
            self._print(line)

    def finish(self, view: MigrationView) -> None:
        self._print("")
        _print_end(self._console, view)

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


class LiveScreen:
    """Painted over several times a second. Owns the terminal's cursor between `resume` and `pause`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._glyphs = glyphs_for(console)
        self._view = MigrationView()
        self._live: Live | None = None

    def show(self, event: MigrationEvent, before: MigrationView, after: MigrationView) -> None:
        first = not self._view.sequence
        self._view = after
        if first:
            self.resume()

    def pause(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def resume(self) -> None:
        if self._live is None:
            self._live = Live(
                get_renderable=self._draw,
                console=self._console,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
            )
            self._live.start(refresh=True)

    def note(self, text: str) -> None:
        self._console.print(text, style="yellow")

    def detached(self, view: MigrationView, migration_id: str, exit_status: int) -> None:
        self.pause()
        for line in _detached_lines(view, migration_id):
            self._console.print(line)

    def finish(self, view: MigrationView) -> None:
        self.pause()
        _print_end(self._console, view)

    def _draw(self) -> RenderableType:
        return display.live(self._view, now_unix_us(), self._glyphs)


class JsonScreen:
    """One object a line on standard output; notes are for people and left out."""

    def show(self, event: MigrationEvent, before: MigrationView, after: MigrationView) -> None:
        print_object(event_object(event))

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def detached(self, view: MigrationView, migration_id: str, exit_status: int) -> None:
        print_object({"event": "detached", "migration_id": migration_id, "exit_status": exit_status})

    def finish(self, view: MigrationView) -> None:
        pass  # the last event was the result


def _print_end(console: Console, view: MigrationView) -> None:
    glyphs = glyphs_for(console)
    if view.outcome == "completed":
        console.print(display.summary(view, glyphs))
        return
    if view.phases:
        console.print(display.phases_line(view, glyphs))
    error = view.error or DefectError(f"the migration ended as {view.outcome!r}, and the agent did not say why")
    errors = make_console(error=True)
    errors.print(failure(error, errors), soft_wrap=not errors.is_terminal)


def _detached_lines(view: MigrationView, migration_id: str) -> list[str]:
    name = display.workload_name(view) if view.root_pid else "the workload"
    return [
        f"The migration of {name} goes on in the agent; nobody has to watch it.",
        f"  phaul watch {migration_id}    shows it again",
        f"  phaul status {migration_id}   says how it stands",
        f"  phaul cancel {migration_id}   rolls it back, until COMMIT",
    ]
