"""`phaul dump`: a workload into a directory, to be restored later or elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from phaul.cli import display, options
from phaul.cli.console import Glyphs, clean, glyphs_for, make_console
from phaul.cli.failure import report_failure
from phaul.cli.run import run_command
from phaul.cli.screens import PROGRESS_LINE_US, JsonScreen, Screen
from phaul.cli.view import MigrationView
from phaul.errors import DefectError
from phaul.rpc.v1 import facts_pb2
from phaul.rpc.v1.agent_pb2 import MigrationEvent, MigrationReport
from phaul.units import format_bytes, format_us

EPILOG = """[bold]Examples[/]

phaul dump 4711 --to /srv/dumps/web

phaul dump 4711 --to /srv/dumps/web-1 --leave-running --freeze-timeout 5s

[bold]Exit status[/]

0 the dump is whole · 2 usage · 10 refused, 11 no agent answers, 12 not trusted, 13 not allowed: nothing was touched ·
20 to 25 failed or cancelled: the workload goes on, the dump is removed · 30 the same with leftovers ·
40 in doubt: `phaul status` says how it ended · 70 a defect of phaul
"""


def dump(
    pid: Annotated[
        int, typer.Argument(metavar="PID", min=1, help="Root task of the workload: it and all below it are dumped.")
    ],
    to: Annotated[
        Path,
        typer.Option("--to", metavar="DIRECTORY", help="Where the dump goes: a directory that is empty or not there."),
    ],
    leave_running: Annotated[
        bool, typer.Option("--leave-running", help="Let the workload go on, with its connections.")
    ] = False,
    freeze_timeout: Annotated[
        str,
        typer.Option(
            "--freeze-timeout", metavar="TIME", help="Give up when the tasks have stood still for this long (2s)."
        ),
    ] = "0",
    json_output: options.JsonOption = False,
    socket: options.SocketOption = None,
) -> None:
    """Dump a process tree into a directory of this host, from which `phaul restore` starts it again.

    It is ended once all of it is on the disk, unless it shall be left running. Whatever fails before leaves it running
    and removes the dump; so does Ctrl-C. TCP connections are not dumped: those of a workload that is ended are closed,
    and their peers are told; one that is left running keeps them. The copy has its listening sockets, not connections.
    """
    run_command(
        _dump(options.socket_path(socket), pid, to, leave_running, freeze_timeout, json_output),
        json_output=json_output,
    )


def build_request(pid: int, to: Path, *, leave_running: bool, freeze_timeout: str) -> facts_pb2.MigrationRequest:
    """Read what was typed; raises `UsageError` before the agent is asked."""
    from phaul.migration.at_rest import destination_of

    return facts_pb2.MigrationRequest(
        root_pid=pid,
        destination=destination_of(str(to)),
        freeze_timeout_seconds=options.duration("--freeze-timeout", freeze_timeout),
        drop_unaccepted=True,  # none is dumped, and none is touched
        compress=facts_pb2.COMPRESSION_NONE,
        mode=facts_pb2.MODE_STOP_AND_COPY,
        leave_running=leave_running,
    )


async def _dump(
    socket_path: Path, pid: int, to: Path, leave_running: bool, freeze_timeout: str, json_output: bool
) -> int:
    from phaul.agent.client import AgentClient
    from phaul.cli.follow import follow

    to = options.directory(to)
    request = build_request(pid, to, leave_running=leave_running, freeze_timeout=freeze_timeout)
    async with AgentClient(socket_path) as client:
        migration_id = await client.start(request)
    screen: Screen = JsonScreen() if json_output else DumpScreen(make_console(), to, leave_running)
    return await follow(socket_path, migration_id, screen, interactive=False, cancels=True)


class DumpScreen:
    """A `Screen` that says line by line how a dump goes."""

    def __init__(self, console: Console, to: Path, leave_running: bool) -> None:
        self._console = console
        self._glyphs = glyphs_for(console)
        self._to = to
        self._leave_running = leave_running
        self._next_progress_us = 0

    def show(self, event: MigrationEvent, before: MigrationView, after: MigrationView) -> None:
        """Say how large it is, what it loses, and how far it is."""
        match event.WhichOneof("kind"):
            case "started" if after.processes and not before.processes:
                size = display.workload_size(after.processes, after.memory_bytes, after.connections, self._glyphs)
                self._print(f"Dumping {display.workload_name(after)} (PID {after.root_pid}): {size}")
            case "warning":
                self._print(f"{self._glyphs.warning} {clean(event.warning.message)}")
            case "hook_ran":
                for line in display.hook_lines(event.hook_ran, self._glyphs):
                    self._print(line)
            case "progress" if event.unix_us >= self._next_progress_us:
                self._next_progress_us = event.unix_us + PROGRESS_LINE_US
                self._print(display.progress_line(after, event.unix_us, self._glyphs))

    def pause(self) -> None:
        """Nothing is painted over."""

    def resume(self) -> None:
        """Likewise."""

    def note(self, text: str) -> None:
        """Say it."""
        self._print(text)

    def detached(self, view: MigrationView, migration_id: str, exit_status: int) -> None:
        """Say that it goes on."""
        self._print(f"The dump goes on in the agent; `phaul status {migration_id}` says how it stands.")

    def finish(self, view: MigrationView) -> None:
        """Say how it ended."""
        if view.outcome == "completed":
            for line in summary(view, self._to, self._glyphs, leave_running=self._leave_running):
                self._print(line)
            return
        said = f"the dump ended as {view.outcome!r}, and the agent did not say why"
        report_failure(view.error or DefectError(said), json_output=False)

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False)


def summary(view: MigrationView, to: Path, glyphs: Glyphs, *, leave_running: bool) -> list[str]:
    """What there is now, and what to do with it."""
    report = view.report or MigrationReport()
    size = format_bytes(report.memory_bytes + report.image_bytes)
    stood = format_us(report.freeze_us)
    what = f"runs on; it stood still for {stood}" if leave_running else "has ended"
    return [
        f"{glyphs.done} {display.workload_name(view)} is in {clean(str(to))}, {size}; it {what}",
        f"  phaul restore {clean(str(to))}    starts it again, on this host or another",
    ]
