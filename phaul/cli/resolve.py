"""`phaul resolve`: what both hosts know of a migration in doubt, what may be decided here, and deciding it.

Nothing is done that was not chosen, and nothing unsafe without a second question or `--yes`. Which choice is safe the
agent says (`migration.resolution`); here it is shown and asked.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from phaul.cli import options
from phaul.cli.console import Glyphs, clean, glyphs_for, make_console
from phaul.cli.lookup import find_migration
from phaul.cli.machine import message_object, print_object
from phaul.cli.run import run_steps
from phaul.cli.view import outcome_name, role_name
from phaul.errors import InDoubtError, UsageError
from phaul.rpc.v1.agent_pb2 import (
    CHOICE_ABORT_HERE,
    CHOICE_RESUME_HERE,
    OUTCOME_IN_DOUBT,
    OUTCOME_RUNNING,
    SAFETY_IMPOSSIBLE,
    SAFETY_SAFE,
    SAFETY_UNSAFE,
    TREE_ALIVE,
    TREE_ANOTHER_BOOT,
    TREE_DEAD,
    TREE_HELD,
    Choice,
    DoubtOption,
    DoubtReport,
    MigrationSummary,
    ResolveReply,
    Safety,
)
from phaul.rpc.v1.peer_pb2 import (
    WORD_ABORTED,
    WORD_COMMITTED,
    WORD_HELD,
    WORD_NO_ANSWER,
    WORD_RESERVED,
    WORD_RUNNING,
    WORD_UNDECIDED,
    WORD_UNKNOWN,
)

EPILOG = """[bold]Examples[/]

phaul resolve 0875

phaul resolve 0875 --resume-here

phaul resolve 0875 --abort-here --yes --json

[bold]Exit status[/]

0 resolved, or nothing to resolve · 2 usage, or not safe and not --yes · 40 still in doubt · 41 lost, images kept
"""

T = TypeVar("T")

DONE_STATUS = 0
OPTIONS = {CHOICE_RESUME_HERE: "--resume-here", CHOICE_ABORT_HERE: "--abort-here"}
KEYS = {"r": CHOICE_RESUME_HERE, "a": CHOICE_ABORT_HERE}
KEY_TEXTS = {CHOICE_RESUME_HERE: "[r]esume here", CHOICE_ABORT_HERE: "[a]bort here"}
SAFETY_STYLES: dict[Safety.ValueType, tuple[str, str]] = {
    SAFETY_SAFE: ("safe", "green"),
    SAFETY_UNSAFE: ("not safe", "bold red"),
    SAFETY_IMPOSSIBLE: ("impossible", "dim"),
}
TREES = {
    TREE_ALIVE: "alive",
    TREE_HELD: "stopped, in the hands of CRIU",
    TREE_DEAD: "dead",
    TREE_ANOTHER_BOOT: "dead: this host was restarted",
}
WORDS = {
    WORD_NO_ANSWER: "does not answer",
    WORD_UNKNOWN: "has no record of it",
    WORD_UNDECIDED: "has not decided: it may run there",
    WORD_COMMITTED: "its processes there are dead",
    WORD_RESERVED: "has no complete copy",
    WORD_HELD: "has a complete copy, or the images for one",
    WORD_RUNNING: "the copy runs there",
}
ABORTED = {"source": "rolled back: the workload is there", "destination": "has thrown its copy away"}


def resolve(
    migration_id: options.MigrationArgument,
    resume_here: Annotated[
        bool, typer.Option("--resume-here", help="The workload shall run on this host, and on no other.")
    ] = False,
    abort_here: Annotated[
        bool, typer.Option("--abort-here", help="This host gives up: its copy, or its waiting for the destination.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, also where it is not safe.")] = False,
    json_output: options.JsonOption = False,
    socket: options.SocketOption = None,
) -> None:
    """Show what is known of a migration in doubt, and decide it where the other host is gone for good.

    Without an option it shows both hosts' knowledge and what is safe, and asks on a terminal. A migration in doubt
    settles by itself as soon as the hosts reach each other: wait for that where you can.
    """
    path = options.socket_path(socket)
    run_steps(lambda: _resolve(path, migration_id, resume_here, abort_here, yes, json_output), json_output=json_output)


def _resolve(path: Path, typed: str, resume_here: bool, abort_here: bool, yes: bool, json_output: bool) -> int:
    if resume_here and abort_here:
        raise UsageError("--resume-here and --abort-here exclude each other")
    summary, doubt = _run(_describe(path, typed))
    console = make_console()
    if json_output:
        print_object({"event": "doubt", "exit_status": _status(summary, doubt)} | message_object(doubt))
    else:
        console.print(doubt_view(doubt, glyphs_for(console)), soft_wrap=not console.is_terminal)
    interactive = not json_output and sys.stdin.isatty() and console.is_terminal
    choice = CHOICE_RESUME_HERE if resume_here else CHOICE_ABORT_HERE if abort_here else None
    if doubt.settled:
        if choice is not None:
            raise UsageError(f"migration {doubt.migration_id} has ended: there is nothing to resolve")
        return DONE_STATUS
    if choice is None and interactive:
        choice = _ask_choice(doubt, console)
    if choice is None:
        return _status(summary, doubt)
    option = next(each for each in doubt.options if each.choice == choice)
    if not _may(option, yes=yes, interactive=interactive, console=console):
        return InDoubtError.exit_status
    reply = _run(_decide(path, doubt.migration_id, choice, force=option.safety == SAFETY_UNSAFE))
    return _show_end(doubt, choice, reply, console, json_output=json_output)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def _describe(path: Path, typed: str) -> tuple[MigrationSummary, DoubtReport]:
    from phaul.agent.client import AgentClient

    async with AgentClient(path) as client:
        summary = find_migration(await client.list_migrations(), typed)
        return summary, await client.describe_doubt(summary.migration_id)


async def _decide(path: Path, migration_id: str, choice: Choice.ValueType, *, force: bool) -> ResolveReply:
    from phaul.agent.client import AgentClient

    async with AgentClient(path) as client:
        return await client.resolve(migration_id, choice, force=force)


def _status(summary: MigrationSummary, doubt: DoubtReport) -> int:
    """In doubt is what is called so, and what a person could decide only at a risk."""
    unsafe = any(option.safety == SAFETY_UNSAFE for option in doubt.options)
    doubtful = not doubt.settled and (summary.outcome == OUTCOME_IN_DOUBT or unsafe)
    return InDoubtError.exit_status if doubtful else DONE_STATUS


def _ask_choice(doubt: DoubtReport, console: Console) -> Choice.ValueType | None:
    possible = [option.choice for option in doubt.options if option.safety != SAFETY_IMPOSSIBLE]
    if not possible:
        return None
    console.print()
    asked = ", ".join(KEY_TEXTS[choice] for choice in possible)
    choice = KEYS.get(console.input(Text(f"{asked}, or [l]eave it? (l) ", style="bold")).strip().lower()[:1])
    return choice if choice in possible else None


def _may(option: DoubtOption, *, yes: bool, interactive: bool, console: Console) -> bool:
    """Whether it shall be done. Raises where nobody can be asked, and where there is nothing to ask."""
    if option.safety == SAFETY_IMPOSSIBLE:
        raise InDoubtError(f"{OPTIONS[option.choice]} cannot be done: {option.reason}")
    if option.safety == SAFETY_SAFE or yes:
        return True
    if not interactive:
        raise UsageError(
            f"{OPTIONS[option.choice]} is not safe: {option.reason}. {option.danger}",
            hint="Nothing was done. If you are certain: the same with --yes.",
        )
    console.print(Text(option.danger, style="bold red"))
    if console.input(Text("Do it all the same? Type yes: ", style="bold")).strip().lower() == "yes":
        return True
    console.print("Nothing was done.")
    return False


def _show_end(
    doubt: DoubtReport, choice: Choice.ValueType, reply: ResolveReply, console: Console, *, json_output: bool
) -> int:
    done = reply.outcome not in (OUTCOME_IN_DOUBT, OUTCOME_RUNNING)
    status = DONE_STATUS if done else InDoubtError.exit_status
    if json_output:
        name = OPTIONS[choice].removeprefix("--").replace("-", "_")
        head = {"event": "resolve", "migration_id": doubt.migration_id, "choice": name, "exit_status": status}
        print_object(head | message_object(reply))
        return status
    glyphs = glyphs_for(console)
    if not done:
        console.print("It was decided, but is not done yet: the agent goes on with it.", style="yellow")
        console.print(f"`phaul status {doubt.migration_id}` says how it stands.", style="dim")
        return status
    console.print(Text(f"{glyphs.done} {_end_text(doubt, reply)}", style="green"))
    for warning in reply.warnings:
        console.print(Text(f"{glyphs.warning} {clean(warning)}", style="yellow"))
    return status


def _end_text(doubt: DoubtReport, reply: ResolveReply) -> str:
    name = _name(doubt)
    here = "this host" if role_name(doubt.role) == "destination" else clean(doubt.peer)
    source = clean(doubt.peer) if role_name(doubt.role) == "destination" else "this host"
    match outcome_name(reply.outcome):
        case "completed":
            return f"{name} runs on {here}."
        case "rolled_back":
            return f"The migration is rolled back: {name}, where it still runs, runs on {source}."
        case _:
            return f"{name} was given up on this host."


def doubt_view(doubt: DoubtReport, glyphs: Glyphs) -> RenderableType:
    """Draw what both hosts know, and what may be done here."""
    here = role_name(doubt.role)
    there = "source" if here == "destination" else "destination"
    arrow = glyphs.back_arrow if here == "destination" else glyphs.arrow
    head = Text(_name(doubt), style="bold")
    head.append(f" {arrow} {clean(doubt.peer)}{glyphs.dot}migration {clean(doubt.migration_id)}", style="not bold")
    known = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    known.add_column("", no_wrap=True, style="dim")
    known.add_column(f"THIS HOST ({here})", max_width=48)
    known.add_column(f"{clean(doubt.peer)} ({there})", max_width=32)
    other = ABORTED[there] if doubt.other == WORD_ABORTED else WORDS.get(doubt.other, "was not asked")
    silent = doubt.other == WORD_NO_ANSWER
    known.add_row("workload", Text(clean(doubt.stands)), Text(other, style="bold red" if silent else ""))
    known.add_row("processes", Text(TREES.get(doubt.tree, "none")))
    if here == "destination":
        known.add_row("images", Text("complete" if doubt.images_complete else "not complete"))
    known.add_row("last step", Text(clean(doubt.marks[-1]) if doubt.marks else "none"))
    parts: list[RenderableType] = [head, Text(""), known, Text("")]
    if doubt.settled:
        parts.append(Text("There is nothing to resolve."))
        return Group(*parts)
    choices = Table.grid(padding=(0, 2, 0, 0))
    choices.add_column(no_wrap=True)
    choices.add_column(no_wrap=True)
    choices.add_column()
    for option in doubt.options:
        text, style = SAFETY_STYLES[option.safety]
        reason = f"{clean(option.reason)}. {clean(option.danger)}".strip()
        choices.add_row(Text(OPTIONS[option.choice]), Text(text, style=style), Text(reason))
    return Group(*parts, choices)


def _name(doubt: DoubtReport) -> str:
    command = clean(doubt.command)
    return f"{command} (PID {doubt.root_pid})" if command else f"PID {doubt.root_pid}"
