"""How an error is shown: where the workload runs now, and what to do next. Used by every command of `cli`."""

from __future__ import annotations

import sys
import traceback

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from phaul.cli.console import clean, clean_block, make_console
from phaul.cli.machine import error_object, print_object
from phaul.errors import DefectError, PhaulError, Where

DETAIL_LINES = 20  # more of a log is for the log file, whose place stands in the excerpt
INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it
DEBUG_VARIABLE = "PHAUL_DEBUG"

_WHERE_TEXT = {
    Where.UNTOUCHED: "on the source; it was never touched",
    Where.SOURCE: "on the source, as before",
    Where.DESTINATION: "on the destination",
    Where.IN_DOUBT: "in doubt: the two hosts have not agreed",
    Where.LOST: "on neither host; its images are kept",
    Where.DUMPED: "no copy of it here; the dump is as it was",
}


def report_failure(error: PhaulError, *, json_output: bool) -> None:
    """Show an error: as an object on standard output with --json, else on standard error."""
    if json_output:
        print_object({"event": "error", "error": error_object(error), "exit_status": error.exit_status})
        return
    console = make_console(error=True)
    console.print(failure(error, console), soft_wrap=not console.is_terminal)


def failure(error: PhaulError, console: Console) -> RenderableType:
    """Draw an error: a panel on a terminal, plain lines that a log can hold elsewhere."""
    return failure_panel(error) if console.is_terminal else Text(failure_text(error))


def failure_panel(error: PhaulError) -> RenderableType:
    """Draw an error as a red panel."""
    parts: list[RenderableType] = [Text(clean_block(error.message), style="bold")]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column()
    if error.where in _WHERE_TEXT:
        facts.add_row("It runs", Text(_WHERE_TEXT[error.where]))
    if error.hint:
        facts.add_row("Do next", Text(clean_block(error.hint), style="cyan"))
    if facts.row_count:
        parts += [Text(""), facts]
    if error.notes:
        parts += [Text(""), Text("While undoing:")]
        parts += [Text(f"- {clean_block(note)}", style="yellow") for note in error.notes]
    if error.detail:
        parts += [Text(""), Text(_excerpt(error.detail), style="dim")]
    subtitle = Text(f"exit status {error.exit_status}", style="dim")
    title = Text(error.code, style="bold red")
    return Panel(
        Group(*parts), title=title, title_align="left", subtitle=subtitle, subtitle_align="right", border_style="red"
    )


def failure_text(error: PhaulError) -> str:
    """Write an error as plain lines, each with a label."""
    lines = [f"phaul: {error.code}: {clean_block(error.message)}"]
    if error.where in _WHERE_TEXT:
        lines.append(f"  it runs: {_WHERE_TEXT[error.where]}")
    if error.hint:
        lines.append(f"  do next: {clean_block(error.hint)}")
    lines += [f"  while undoing: {clean_block(note)}" for note in error.notes]
    if error.detail:
        lines += [f"  | {line}" for line in _excerpt(error.detail).splitlines()]
    return "\n".join(lines)


def defect_of(error: Exception) -> DefectError:
    """Wrap what nobody expected."""
    defect = DefectError(
        f"phaul met something that its authors did not expect: {type(error).__name__}: {error}",
        hint=f"Please report this. {DEBUG_VARIABLE}=1 shows the traceback.",
    )
    defect.__cause__ = error
    return defect


def print_traceback(error: BaseException) -> None:
    """Print the traceback to standard error, for `PHAUL_DEBUG=1`."""
    traceback.print_exception(error, file=sys.stderr)


def _excerpt(detail: str) -> str:
    lines = [clean(line.replace("\t", "    ")) for line in detail.strip("\n").splitlines()]
    left_out = len(lines) - DETAIL_LINES
    if left_out > 0:
        lines = [*lines[:DETAIL_LINES], f"({left_out} more lines)"]
    return "\n".join(lines)
