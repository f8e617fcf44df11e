"""`phaul doctor --fix`: what earlier crashes have left on this host is shown, and removed when the person says yes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from phaul.cli.console import Glyphs, clean, glyphs_for, make_console
from phaul.cli.display import counted
from phaul.cli.machine import message_object, print_object
from phaul.errors import LeftoversError
from phaul.rpc.v1.agent_pb2 import Leftover

QUESTION = "Remove it? (y/N) "


async def fix_host(path: Path, *, yes: bool, json_output: bool) -> int:
    """Show, ask, remove; give 0 where nothing is left then, else the exit status of leftovers."""
    from phaul.agent.client import AgentClient

    console = make_console()
    async with AgentClient(path) as client:
        found = await client.find_leftovers()
        if not json_output:
            _show(found, console, glyphs_for(console))
        removed: Sequence[Leftover] = ()
        if found and (yes or (not json_output and _asked())):
            removed = await client.remove_leftovers()
            if not json_output:
                _show_removed(removed, console, glyphs_for(console))
    left = [each for each in removed if each.problem] if removed else found
    status = LeftoversError.exit_status if left else 0
    if json_output:
        told = {"found": list(map(message_object, found)), "removed": list(map(message_object, removed))}
        print_object({"event": "fix", "exit_status": status} | told)
    return status


def _show(found: Sequence[Leftover], console: Console, glyphs: Glyphs) -> None:
    if not found:
        console.print(Text(f"{glyphs.done} Nothing is left of earlier migrations.", style="bold green"))
        return
    console.print(Text(f"{counted(len(found), 'thing')} left of earlier migrations", style="bold"))
    for each in found:
        console.print(Text(f"  {glyphs.warning} {_worded(each)}"))


def _show_removed(removed: Sequence[Leftover], console: Console, glyphs: Glyphs) -> None:
    for each in removed:
        if each.problem:
            console.print(Text(f"  {glyphs.failed} {_worded(each)}: {clean(each.problem)}", style="red"))
        else:
            console.print(Text(f"  {glyphs.done} removed: {_worded(each)}", style="green"))


def _worded(leftover: Leftover) -> str:
    return f"{clean(leftover.what)} (migration {clean(leftover.migration_id)})"


def _asked() -> bool:
    """Nobody at a terminal means no."""
    if not sys.stdin.isatty():
        return False
    sys.stdout.write(QUESTION)
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
