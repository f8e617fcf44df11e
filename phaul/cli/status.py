"""`phaul status`: the migrations this host takes or took part in, and one of them in full."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from phaul.agent.messages import error_from_message
from phaul.cli import display, options
from phaul.cli.console import Glyphs, clean, glyphs_for, make_console
from phaul.cli.failure import failure
from phaul.cli.lookup import find_migration
from phaul.cli.machine import message_object, print_object
from phaul.cli.run import run_command
from phaul.cli.view import MigrationView, outcome_name, phase_name, role_name
from phaul.config import DEFAULT_PEER_PORT
from phaul.rpc.v1.agent_pb2 import MigrationSummary, Outcome, PagesLoading
from phaul.units import format_bytes, format_us

DAY_SECONDS = 86_400
OUTCOME_STYLES = {
    "running": "bold cyan",
    "completed": "green",
    "refused": "yellow",
    "rolled_back": "yellow",
    "in_doubt": "bold red",
    "lost": "bold red",
}


def status(
    migration_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One migration in full; its first characters suffice.")
    ] = None,
    json_output: options.JsonOption = False,
    socket: options.SocketOption = None,
) -> None:
    """List the migrations of this host, past and present, newest first; or show one of them."""
    run_command(_status(options.socket_path(socket), migration_id, json_output), json_output=json_output)


async def _status(path: Path, typed: str | None, json_output: bool) -> int:
    from phaul.agent.client import AgentClient

    async with AgentClient(path) as client:
        migrations = await client.list_migrations()
    if typed is not None:
        migrations = (find_migration(migrations, typed),)
    if json_output:
        for summary in migrations:
            print_object({"event": "migration"} | message_object(summary))
        return 0
    console = make_console()
    glyphs = glyphs_for(console)
    if typed is not None:
        console.print(one_migration(migrations[0], glyphs))
        if migrations[0].HasField("error"):
            error = error_from_message(migrations[0].error)
            console.print(failure(error, console), soft_wrap=not console.is_terminal)
    elif migrations:
        console.print(migration_table(migrations, int(time.time()), glyphs))
        for summary in migrations:
            if summary.outcome == Outcome.OUTCOME_IN_DOUBT:
                console.print(doubt_line(summary))
    else:
        console.print("No migrations yet. `phaul migrate PID --to HOST` starts one.")
    return 0


def migration_table(migrations: tuple[MigrationSummary, ...], now_unix_seconds: int, glyphs: Glyphs) -> Table:
    """Draw the list: a line a migration, cut at the command where the terminal is narrow."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("ID", no_wrap=True)
    table.add_column("WHEN", no_wrap=True)
    # Only columns that may wrap give way on a narrow terminal; their cells are cut instead of wrapped.
    table.add_column("PEER", max_width=24)
    table.add_column("PID", no_wrap=True, justify="right")
    table.add_column("COMMAND", max_width=24)
    table.add_column("STATE", no_wrap=True)
    table.add_column("DOWN", no_wrap=True, justify="right")
    table.add_column("TOTAL", no_wrap=True, justify="right")
    for summary in migrations:
        table.add_row(
            clean(summary.migration_id),
            when(summary.started_unix_us // 1_000_000, now_unix_seconds),
            _cut(direction(summary, glyphs)),
            str(summary.root_pid),
            _cut(clean(summary.command)),
            state(summary),
            format_us(summary.report.downtime_us) if summary.HasField("report") else "",
            format_us(total_us(summary)) if summary.ended_unix_us else "",
        )
    return table


def one_migration(summary: MigrationSummary, glyphs: Glyphs) -> RenderableType:
    """Draw one migration; its error, if it has one, is the caller's to show below."""
    name = clean(summary.command) or f"PID {summary.root_pid}"
    head = Text(name, style="bold")
    head.append(f" (PID {summary.root_pid}) ", style="not bold")
    head.append(f"{direction(summary, glyphs)}{glyphs.dot}migration {clean(summary.migration_id)}", style="not bold")
    started = datetime.fromtimestamp(summary.started_unix_us / 1e6).astimezone()
    line = Text.assemble(state(summary), Text(f"{glyphs.dot}started {started:%Y-%m-%d %H:%M:%S}", style="dim"))
    if summary.ended_unix_us:
        line.append(f"{glyphs.dot}took {format_us(total_us(summary))}", style="dim")
    parts: list[RenderableType] = [head, line]
    if summary.outcome == Outcome.OUTCOME_RUNNING:
        parts.append(Text(f"`phaul watch {clean(summary.migration_id)}` shows it live.", style="dim"))
    if summary.outcome == Outcome.OUTCOME_IN_DOUBT:
        parts.append(doubt_line(summary))
    if summary.HasField("loading"):
        parts.append(loading_line(summary.loading))
    if summary.HasField("report"):
        parts += [Text(""), display.summary(view_of(summary), glyphs)]
    return Group(*parts)


def doubt_line(summary: MigrationSummary) -> Text:
    """Say what to type about a migration that is in doubt."""
    name = clean(summary.command) or f"PID {summary.root_pid}"
    line = Text(f"In doubt: {name}. What is known, and what can be done: ", style="bold red")
    return line.append(f"phaul resolve {clean(summary.migration_id)}", style="bold")


def loading_line(loading: PagesLoading) -> Text:
    """Say how much of a workload that runs is still to be loaded from its images."""
    left, total = format_bytes(loading.left_bytes), format_bytes(loading.total_bytes)
    line = Text(f"It runs; {left} of {total} are still being loaded, what it needs first.", style="dim")
    if loading.failing:
        line.append(
            " That does not go on for now, and is tried again: whatever needs a missing page waits. Is memory short?",
            style="bold red",
        )
    return line


def view_of(summary: MigrationSummary) -> MigrationView:
    """Make of a migration's summary what `display.summary` draws. A destination calls itself by its role."""
    here = role_name(summary.role) == "destination"
    return MigrationView(
        migration_id=summary.migration_id,
        root_pid=summary.root_pid,
        command=summary.command,
        destination="this host" if here else summary.peer,
        started_unix_us=summary.started_unix_us,
        ended_unix_us=summary.ended_unix_us or None,
        warnings=tuple(summary.report.warnings),
        outcome=outcome_name(summary.outcome),
        report=summary.report,
    )


def direction(summary: MigrationSummary, glyphs: Glyphs) -> str:
    """Say where it goes: "→ b" from here, "← a" to here."""
    arrow = glyphs.back_arrow if role_name(summary.role) == "destination" else glyphs.arrow
    return f"{arrow} {clean(summary.peer.removesuffix(f':{DEFAULT_PEER_PORT}'))}"


def state(summary: MigrationSummary) -> Text:
    """Say how it stands: the phase while it is under way, then the outcome, or that pages are still being loaded."""
    outcome = outcome_name(summary.outcome)
    if outcome == "running":
        return Text(phase_name(summary.phase) or "running", style=OUTCOME_STYLES[outcome])
    if outcome == "completed" and summary.HasField("loading"):
        return Text("runs, stuck" if summary.loading.failing else "runs, loading", style=OUTCOME_STYLES["running"])
    return Text(outcome.replace("_", " ") or "unknown", style=OUTCOME_STYLES.get(outcome, ""))


def _cut(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def when(started_unix_seconds: int, now_unix_seconds: int) -> str:
    """Give the time of day for what began within a day, else the date."""
    started = datetime.fromtimestamp(started_unix_seconds).astimezone()
    return f"{started:%H:%M:%S}" if now_unix_seconds - started_unix_seconds < DAY_SECONDS else f"{started:%Y-%m-%d}"


def total_us(summary: MigrationSummary) -> int:
    """How long it took: as the report says, else from the first to the last moment."""
    return summary.report.total_us or max(0, summary.ended_unix_us - summary.started_unix_us)
