"""`phaul restore`: start what `phaul dump` has left in a directory."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from phaul.cli import options
from phaul.cli.console import clean, glyphs_for, make_console
from phaul.cli.machine import message_object, print_object
from phaul.cli.run import run_command
from phaul.errors import DefectError
from phaul.rpc.v1.agent_pb2 import RestoreDumpEvent, RestoreDumpRequest
from phaul.units import format_bytes, format_us

PROGRESS_SECONDS = 2.0  # between two lines of it
SIGNAL_STATUS = 128

EPILOG = """[bold]Examples[/]

phaul restore /srv/dumps/web

phaul restore /srv/dumps/web --new-address 10.0.0.50=10.0.0.51 --new-mac 02:00:00:00:00:51 --hostname web2

[bold]Exit status[/]

0 it runs · 2 usage · 11 no agent answers, 12 not trusted, 13 not allowed: nothing was touched ·
15 refused or failed: no copy of it runs, the dump is as it was · 70 a defect of phaul ·
130, 143 left by Ctrl-C or SIGTERM: undone, unless it ran already
"""


def restore(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIRECTORY", help="What `phaul dump` has made, or a copy of it."),
    ],
    new_address: options.NewAddressOption = None,
    new_gateway: options.NewGatewayOption = None,
    new_mac: options.NewMacOption = None,
    hostname: options.HostNameOption = "",
    json_output: options.JsonOption = False,
    socket: options.SocketOption = None,
) -> None:
    """Start what was dumped into a directory, on this host, where it stood; the directory stays as it is.

    The host needs what the destination of a migration needs: the same files, free PIDs, the addresses that its sockets
    are bound to, or new ones instead. The copy has no TCP connections of before. Ctrl-C before it runs undoes all.
    """
    run_command(
        _restore(
            options.socket_path(socket),
            partial(build_request, directory, new_address or [], new_gateway or [], new_mac or [], hostname),
            json_output,
        ),
        json_output=json_output,
    )


def build_request(
    directory: Path, addresses: list[str], gateways: list[str], macs: list[str], host_name: str
) -> RestoreDumpRequest:
    """Read what was typed; raises `UsageError` before the agent is asked."""
    from phaul.migration.new_identity import parse_host_name

    return RestoreDumpRequest(
        directory=str(options.directory(directory)),
        new_addresses=options.new_addresses(addresses),
        new_gateways=options.new_gateways(gateways),
        new_macs=options.new_macs(macs),
        host_name=parse_host_name(host_name) if host_name else "",
    )


async def _restore(socket_path: Path, read: Callable[[], RestoreDumpRequest], json_output: bool) -> int:
    request = read()
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(_show(socket_path, request, json_output))
    interrupted: list[int] = []

    def interrupt(number: int) -> None:
        interrupted.append(number)
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    try:
        await work
    except asyncio.CancelledError:
        if not interrupted:
            raise
        if not json_output:
            make_console(error=True).print("Left; what did not run yet is undone.")
        return SIGNAL_STATUS + interrupted[0]
    return 0


async def _show(socket_path: Path, request: RestoreDumpRequest, json_output: bool) -> None:
    from phaul.agent.client import AgentClient

    show = _print_json if json_output else _Lines(request.directory).show
    restored = False
    async with AgentClient(socket_path) as client:
        async for event in client.restore_dump(request):
            restored = event.HasField("restored")
            show(event)
    if not restored:
        raise DefectError("the agent ended the restore without saying how")


def _print_json(event: RestoreDumpEvent) -> None:
    kind = event.WhichOneof("kind") or "unknown"
    body = message_object(getattr(event, kind)) if kind != "unknown" else {}
    last = kind == "restored"
    print_object({"event": "result" if last else kind, **({"exit_status": 0} if last else {}), **body})


class _Lines:
    """Says line by line how a restore goes."""

    def __init__(self, directory: str) -> None:
        self._console = make_console()
        self._glyphs = glyphs_for(self._console)
        self._directory = directory
        self._name = "the workload"
        self._next_progress = asyncio.get_running_loop().time() + PROGRESS_SECONDS

    def show(self, event: RestoreDumpEvent) -> None:
        """Take one more event in."""
        match event.WhichOneof("kind"):
            case "begun":
                self._name = clean(event.begun.command)
                size, host = format_bytes(event.begun.bytes), clean(event.begun.host_name)
                self._print(f"Restoring {self._name} from {clean(self._directory)}: {size}, dumped on {host}")
            case "warning":
                self._print(f"{self._glyphs.warning} {clean(event.warning.message)}")
            case "progress":
                now = asyncio.get_running_loop().time()
                if now >= self._next_progress:
                    self._next_progress = now + PROGRESS_SECONDS
                    done, total = event.progress.done_bytes, event.progress.total_bytes
                    self._print(f"  {format_bytes(done)} of {format_bytes(total)} read and verified")
            case "restored":
                took = format_us(event.restored.duration_us)
                self._print(f"{self._glyphs.done} {self._name} runs as PID {event.restored.pid}, after {took}")

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False)
