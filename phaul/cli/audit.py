"""`phaul audit`: who did what on this host, when, and how it ended. Reads the log itself; needs no agent."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from phaul.cli.console import clean, make_console
from phaul.cli.machine import print_object
from phaul.cli.options import JsonOption
from phaul.cli.run import run_command
from phaul.config import AgentConfig
from phaul.errors import UsageError
from phaul.units import parse_seconds

EPILOG = """[bold]Examples[/]

phaul audit --since 24h

phaul audit --since 2026-11-01 --json | jq 'select(.outcome == "denied")'
"""

HEAD = ("time", "event", "who", "outcome")  # have columns of their own
STYLES = {"denied": "bold red", "refused": "yellow", "cut": "yellow", "in_doubt": "bold red", "lost": "bold red"}
DAY_SECONDS = 86_400


def audit(
    since: Annotated[
        str, typer.Option(metavar="TIME", help="A date, a date and time of this host, or how long ago: 30m, 24h, 7d.")
    ] = "",
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="The log. Default: that of this host's agent.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show who did what: migrations, refusals, cancels, decisions, changes of trust."""
    run_command(_audit(since, file or AgentConfig().audit_path, json_output), json_output=json_output)


async def _audit(since: str, path: Path, json_output: bool) -> int:
    from phaul.system.audit_file import read

    earliest = parse_since(since, datetime.datetime.now().astimezone()) if since else None
    try:
        records = [
            record for record in read(path) if earliest is None or (at := time_of(record)) is None or at >= earliest
        ]
    except OSError as error:
        raise UsageError(
            f"the audit log {path} cannot be read: {error.strerror}", hint="It is root's; or name it with --file."
        ) from error
    if json_output:
        for record in records:
            print_object(record)
    elif records:
        make_console().print(_table(records))
    else:
        make_console().print(f"There is nothing in {path}{f' since {since}' if since else ''}.", soft_wrap=True)
    return 0


def _is_since(record: Mapping[str, object], earliest: datetime.datetime) -> bool:
    at = time_of(record)
    return at is None or at >= earliest


def parse_since(text: str, now: datetime.datetime) -> datetime.datetime:
    """Read when to begin. Raises `UsageError`."""
    try:
        if text.endswith("d"):
            return now - datetime.timedelta(days=float(text[:-1]))
        return now - datetime.timedelta(seconds=parse_seconds(text))
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is no time", hint="Write for example 24h, 7d, 2026-11-01 or 2026-11-01T14:30."
        ) from None


def time_of(record: Mapping[str, object]) -> datetime.datetime | None:
    """When it was; None where the record does not say so."""
    try:
        return datetime.datetime.fromisoformat(str(record.get("time"))).astimezone()
    except ValueError:
        return None


def _table(records: Iterable[Mapping[str, object]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("WHEN", "WHAT", "WHO", "OUTCOME"):
        table.add_column(title, no_wrap=title != "WHO")
    table.add_column("DETAILS", overflow="fold")
    for record in records:
        at = time_of(record)
        outcome = clean(str(record.get("outcome", "")))
        details = ", ".join(f"{name} {_text(value)}" for name, value in record.items() if name not in HEAD)
        table.add_row(
            f"{at.astimezone():%Y-%m-%d %H:%M:%S}" if at else "",
            clean(str(record.get("event", ""))),
            clean(str(record.get("who", ""))),
            Text(outcome, style=STYLES.get(outcome, "")),
            clean(details),
        )
    return table


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
