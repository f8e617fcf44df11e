"""`phaul demo`: a running Redis is moved between two hosts of a lab and back, on this terminal. Mounted by `main`.

Only renders: what happens is in `phaul.lab.demo`. The moves are those of `phaul migrate`, with its own display.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from phaul.cli.console import Glyphs, clean, glyphs_for, make_console
from phaul.cli.display import LINE_COLUMNS, indented
from phaul.cli.failure import INTERRUPTED_STATUS
from phaul.cli.lab import errors_shown
from phaul.cli.machine import print_object
from phaul.errors import LabError
from phaul.lab import cluster
from phaul.lab.cluster import Lab
from phaul.lab.demo import ADDRESS, DEFAULT_MIB, LAB_NAME, PREFIX, Demo, Leg, MoveFailedError, Verdict
from phaul.lab.host import Host
from phaul.units import format_us

TRIP = (("a", "b"), ("b", "a"))
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def demo(
    mib: Annotated[int, typer.Option("--mib", min=1, help="Data in Redis, in MiB.")] = DEFAULT_MIB,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the hosts up afterwards, to play on.")] = False,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the lab that is made.")] = LAB_NAME,
    json_output: Annotated[bool, typer.Option("--json", help="Print the verdict as one JSON object.")] = False,
) -> None:
    """Move a running Redis between two hosts of this machine and back, its client connected, and judge how it went.

    Exits 0 only if the verdict holds: same process, same connection, nothing lost, nothing left behind. Needs root.
    """
    # With --json standard output is for the object alone.
    console = make_console(error=json_output)
    with errors_shown(json_output=json_output), _ended_by_signals():
        raise typer.Exit(_demo(console, mib, name, keep=keep, json_output=json_output))


def _demo(console: Console, mib: int, name: str, *, keep: bool, json_output: bool) -> int:
    glyphs = glyphs_for(console)
    lab = Lab.up(name, progress=lambda line: console.print(f"{line}{glyphs.ellipsis}", style="dim"))
    with _taken_down(lab, console, keep=keep):
        shown = Demo(lab, mib)
        try:
            console.print(f"Starting Redis on host a and filling it with {mib} MiB{glyphs.ellipsis}", style="dim")
            shown.prepare()
            console.print()
            console.print(introduction(shown), width=min(console.width, LINE_COLUMNS))
            for source, destination in TRIP:
                _show_command(console, source, shown.command(destination))
                shown.move(source, destination, _run_quietly if json_output else _run_shown)
            verdict = shown.judge()
            if keep and verdict.holds:
                shown.go_on()
        except MoveFailedError as error:
            if error.status == INTERRUPTED_STATUS:
                return INTERRUPTED_STATUS
            raise LabError(
                f"Moving from {error.source} to {error.destination} failed: "
                f"`phaul migrate` ended with status {error.status}.",
                hint="What it said above tells why; `phaul demo --keep` leaves the hosts up for a closer look.",
            ) from error
        finally:
            shown.close()
        if json_output:
            print_object(verdict_object(verdict))
        else:
            _print_verdict(console, verdict, glyphs)
        return 0 if verdict.holds else 1


def introduction(shown: Demo) -> Text:
    """Say what one is about to see."""
    return Text(
        f"Redis (PID {shown.pid}) runs on host a and holds {shown.mib} MiB of random data. A client on a third host "
        f"keeps writing and reading numbers over one TCP connection to {ADDRESS}. You will now see phaul move Redis "
        "to host b and back while it runs: the client should notice no more than a short pause. "
        "At the end every value is read back."
    )


def verdict_object(verdict: Verdict) -> dict[str, object]:
    """The verdict for programs."""
    return {
        "event": "demo",
        "holds": verdict.holds,
        "exit_status": 0 if verdict.holds else 1,
        "checks": [{"name": check.name, "holds": check.holds, "detail": check.detail} for check in verdict.checks],
        "moves": [_leg_object(leg) for leg in verdict.legs],
        "operations": {"before": verdict.before, "during": verdict.during, "after": verdict.after},
        "numbers": verdict.numbers,
        "blocks": verdict.blocks,
        "lost": verdict.lost,
        "resets": verdict.resets,
    }


def _leg_object(leg: Leg) -> dict[str, object]:
    return {
        "source": leg.source,
        "destination": leg.destination,
        "longest_gap_us": leg.longest_gap_us,
        "operations": leg.operations,
        "leftovers": list(leg.leftovers),
        "report": leg.report,
    }


def _print_verdict(console: Console, verdict: Verdict, glyphs: Glyphs) -> None:
    console.print()
    console.print(Text("Verdict", style="bold"))
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for check in verdict.checks:
        mark = Text(glyphs.done, style="green") if check.holds else Text(glyphs.failed, style="bold red")
        lines.add_row(Text.assemble(mark, " ", check.name), Text(clean(check.detail)))
    counts = f"{verdict.before:,} before, {verdict.during:,} during, {verdict.after:,} after the moves"
    lines.add_row("  operations", counts)
    console.print(indented(lines))
    console.print()
    console.print(indented(_moves_table(verdict.legs, glyphs)))
    console.print()
    if verdict.holds:
        console.print(Text(f"{glyphs.done} The verdict holds.", style="bold green"))
    else:
        failed = ", ".join(check.name for check in verdict.checks if not check.holds)
        console.print(Text(f"{glyphs.failed} The verdict does not hold: {failed}.", style="bold red"))


def _moves_table(legs: Sequence[Leg], glyphs: Glyphs) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("MOVE", no_wrap=True)
    for title in ("LONGEST GAP OF THE CLIENT", "DOWNTIME", "TOTAL TIME"):
        table.add_column(title, justify="right", no_wrap=True)
    for leg in legs:
        table.add_row(
            f"{leg.source} {glyphs.arrow} {leg.destination}",
            Text(format_us(leg.longest_gap_us), style="bold"),
            format_us(leg.report["downtime_us"]),
            format_us(leg.report["total_us"]),
        )
    return table


def _show_command(console: Console, place: str, argv: Sequence[str]) -> None:
    console.print()
    console.print(Text.assemble((f"root@{place}:~# ", "dim"), (shlex.join(argv), "bold")), soft_wrap=True)


def _run_shown(host: Host, argv: Sequence[str]) -> int:
    """With this terminal, so that the display is the one that a person on that host would see."""
    sys.stdout.flush()
    return host.interact(argv)


def _run_quietly(host: Host, argv: Sequence[str]) -> int:
    done = host.exec([*argv, "--json"], check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
    return done.returncode


@contextmanager
def _taken_down(lab: Lab, console: Console, *, keep: bool) -> Iterator[None]:
    """Take the lab down at the end, however that comes; or tell how to play on."""
    try:
        yield
    finally:
        if keep:
            _say_how_to_play_on(console, lab.name)
        else:
            # A second Ctrl-C must not leave half a lab behind; this takes a few tenths of a second.
            previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                lab.down()
            finally:
                signal.signal(signal.SIGINT, previous)


def _say_how_to_play_on(console: Console, name: str) -> None:
    option = "" if name == cluster.DEFAULT_NAME else f" --name {name}"
    console.print("\nThe hosts are still up, with Redis and its client. To play on:")
    migrate = f"phaul migrate $(pidof redis-server) --to b --address {PREFIX}"
    for what, line in (
        ("a shell on host a", f"phaul lab exec{option} a"),
        ("what was moved", f"phaul lab exec{option} a phaul status"),
        ("move it again", f"phaul lab exec{option} a sh -c '{migrate}'"),
        ("end it all", f"phaul lab down{option}"),
    ):
        console.print(Text.assemble(f"  {what:<18}  ", (line, "bold")), soft_wrap=True)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that the lab is taken down."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
