"""`phaul migrate`, `watch` and `cancel`: starting a migration, seeing it through, stopping it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from phaul.cli import options
from phaul.cli.check import print_check
from phaul.cli.console import can_redraw, make_console
from phaul.cli.lookup import find_migration
from phaul.cli.machine import print_object
from phaul.cli.over_ssh import is_over_ssh, visited
from phaul.cli.run import run_command
from phaul.errors import UsageError
from phaul.install.target import Login
from phaul.migration.facts import Compression, Mode, OnStall
from phaul.rpc.v1 import facts_pb2
from phaul.rpc.v1.facts_pb2 import AddressRequest, MigrationRequest
from phaul.units import parse_bandwidth

MIGRATE_EPILOG = """[bold]Examples[/]

phaul migrate 4711 --to b.example

phaul migrate $(pidof redis-server) --to 10.0.0.2 --address 10.0.0.50/24

phaul migrate 4711 --to \\[fd00::2]:7428 --address fd00::50/64@eth1 --json

phaul migrate 4711 --to b.example --max-downtime 300ms --on-stall throttle --timeout 10m

phaul migrate 4711 --to b.example --dry-run

[bold]Exit status[/]

0 it runs on the destination · 2 usage · 10 refused, 11 no agent answers, 12 not trusted: nothing was touched ·
20 to 27 failed and rolled back, it runs on the source (21 dump, 22 transfer, 23 restore, 24 switchover, 25 cancelled,
26 longer than --max-downtime, 27 an action script) ·
30 rolled back with leftovers · 40 in doubt · 41 lost, images kept · 70 a defect of phaul ·
130, 143 left by Ctrl-C or SIGTERM, the migration goes on in the agent
"""


def migrate(
    pid: Annotated[
        int, typer.Argument(metavar="PID", min=1, help="Root task of the workload: it and all below it move.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="HOST[:PORT]",
            help="Destination, where an agent listens. ssh://[USER@]HOST: one that has only an SSH server and "
            "CRIU gets an agent for this migration.",
        ),
    ],
    address: Annotated[
        list[str] | None,
        typer.Option(
            "--address",
            metavar="IP/PREFIX[@DEVICE]",
            help="Address that moves along; DEVICE is that of the destination. `auto`: those that the workload uses "
            "and nobody else does. May be given several times.",
        ),
    ] = None,
    drop_unaccepted: Annotated[
        bool,
        typer.Option("--drop-unaccepted", help="Accept the loss of connections that wait in a listen queue."),
    ] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Roll back when it is not at COMMIT by then (30s, 5m).")
    ] = "0",
    freeze_timeout: Annotated[
        str,
        typer.Option(
            "--freeze-timeout",
            metavar="TIME",
            help="Roll back when the tasks have stood still for this long (2s).",
        ),
    ] = "0",
    bandwidth: options.BandwidthOption = "",
    compress: options.CompressOption = Compression.AUTO,
    mode: options.ModeOption = Mode.AUTO,
    max_downtime: options.MaxDowntimeOption = "",
    max_rounds: options.MaxRoundsOption = 0,
    on_stall: options.OnStallOption = OnStall.REFUSE,
    hook: options.HookOption = None,
    new_address: options.NewAddressOption = None,
    new_gateway: options.NewGatewayOption = None,
    new_mac: options.NewMacOption = None,
    hostname: options.HostNameOption = "",
    identity: options.IdentityOption = None,
    known_hosts: options.KnownHostsOption = None,
    accept_new_host_key: options.AcceptNewOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say whether it may go and what is in the way; touch nothing.")
    ] = False,
    json_output: options.JsonOption = False,
    socket: options.SocketOption = None,
) -> None:
    """Move a running process tree to another host, with its open connections.

    The migration runs in the agent of this host: closing the terminal changes nothing. Whatever fails before COMMIT is
    undone, and the workload goes on here. Ctrl-C asks whether to cancel, to leave it running or to watch on.
    """
    path = options.socket_path(socket)
    typed = Typed(
        tuple(address or ()),
        drop_unaccepted,
        timeout,
        freeze_timeout,
        bandwidth,
        compress,
        mode,
        max_downtime,
        max_rounds,
        on_stall,
        absolute(hook or ()),
        tuple(new_address or ()),
        tuple(new_mac or ()),
        hostname,
        tuple(new_gateway or ()),
    )
    if not is_over_ssh(to):
        run_command(_migrate(path, pid, to, typed, dry_run, json_output), json_output=json_output)
    build_request(pid, "checked-before-anything-is-brought-there", typed)
    login = options.login(identity, known_hosts, accept_new_host_key)

    async def work(destination: str) -> int:
        return await _migrate(path, pid, destination, typed, dry_run, json_output)

    run_command(_over_ssh(path, to, login, work, json_output), json_output=json_output)


def watch(
    migration_id: options.MigrationArgument,
    json_output: options.JsonOption = False,
    socket: options.SocketOption = None,
) -> None:
    """Watch a migration that goes on in the agent, from its first event on; exits as `phaul migrate` would."""
    run_command(_watch(options.socket_path(socket), migration_id, json_output), json_output=json_output)


def cancel(
    migration_id: options.MigrationArgument,
    json_output: options.JsonOption = False,
    socket: options.SocketOption = None,
) -> None:
    """Ask for a migration to be rolled back. Honoured until COMMIT; exits 2 when it is too late."""
    run_command(_cancel(options.socket_path(socket), migration_id, json_output), json_output=json_output)


@dataclass(frozen=True, slots=True)
class Typed:
    """What was typed beside the workload and the destination."""

    addresses: tuple[str, ...] = ()
    drop_unaccepted: bool = False
    timeout: str = "0"
    freeze_timeout: str = "0"
    bandwidth: str = ""
    compress: Compression = Compression.AUTO
    mode: Mode = Mode.AUTO
    max_downtime: str = ""
    max_rounds: int = 0
    on_stall: OnStall = OnStall.REFUSE
    hooks: tuple[str, ...] = ()
    new_addresses: tuple[str, ...] = ()
    new_macs: tuple[str, ...] = ()
    host_name: str = ""
    new_gateways: tuple[str, ...] = ()


def absolute(files: Sequence[str]) -> tuple[str, ...]:
    """Give the paths of action scripts as both hosts will look for them."""
    return tuple(str(Path(file).absolute()) for file in files)


def build_request(pid: int, to: str, typed: Typed) -> MigrationRequest:
    """Read what was typed; raises `UsageError` before any agent is asked."""
    from phaul.agent.destination import parse_destination
    from phaul.migration.address_rules import parse_address
    from phaul.migration.new_identity import parse_host_name

    max_downtime_seconds = options.duration("--max-downtime", typed.max_downtime or "0")
    if typed.max_downtime and not max_downtime_seconds:
        raise UsageError("--max-downtime: no pause at all cannot be had; a freeze takes some ten milliseconds at least")
    request = MigrationRequest(
        root_pid=pid,
        destination=str(parse_destination(to)),
        drop_unaccepted=typed.drop_unaccepted,
        timeout_seconds=options.duration("--timeout", typed.timeout),
        freeze_timeout_seconds=options.duration("--freeze-timeout", typed.freeze_timeout),
        bandwidth_bytes_per_second=_bandwidth(typed.bandwidth) if typed.bandwidth else 0,
        compress=facts_pb2.Compression.Value(f"COMPRESSION_{typed.compress.name}"),
        mode=facts_pb2.Mode.Value(f"MODE_{typed.mode.name}"),
        max_downtime_seconds=max_downtime_seconds,
        max_rounds=typed.max_rounds,
        on_stall=facts_pb2.OnStall.Value(f"ON_STALL_{typed.on_stall.name}"),
        hooks=typed.hooks,
        host_name=parse_host_name(typed.host_name) if typed.host_name else "",
    )
    request.new_macs.extend(options.new_macs(typed.new_macs))
    request.new_addresses.extend(options.new_addresses(typed.new_addresses))
    request.new_gateways.extend(options.new_gateways(typed.new_gateways))
    for address in typed.addresses:
        if address == "auto":
            request.auto_addresses = True
            continue
        wanted = parse_address(address)
        request.addresses.append(
            AddressRequest(address=wanted.address, prefix_length=wanted.prefix_length, device=wanted.device)
        )
    return request


def _bandwidth(typed: str) -> int:
    try:
        return parse_bandwidth(typed)
    except ValueError as error:
        raise UsageError(f"--bandwidth: {error}") from error


async def _migrate(
    path: Path,
    pid: int,
    to: str,
    typed: Typed,
    dry_run: bool,
    json_output: bool,
) -> int:
    from phaul.agent.client import AgentClient

    request = build_request(pid, to, typed)
    async with AgentClient(path) as client:
        if dry_run:
            return print_check(await client.check(request), json_output=json_output)
        migration_id = await client.start(request)
    return await _follow(path, migration_id, json_output)


async def _over_ssh(path: Path, to: str, login: Login, work: Callable[[str], Awaitable[int]], json_output: bool) -> int:
    from phaul.agent.client import AgentClient

    async with AgentClient(path):  # or say that none runs here, before anything is brought there
        pass
    return await visited(to, login, work, quiet=json_output)


async def _watch(path: Path, typed: str, json_output: bool) -> int:
    from phaul.agent.client import AgentClient

    async with AgentClient(path) as client:
        migration_id = find_migration(await client.list_migrations(), typed).migration_id
    return await _follow(path, migration_id, json_output)


async def _cancel(path: Path, typed: str, json_output: bool) -> int:
    from phaul.agent.client import AgentClient

    async with AgentClient(path) as client:
        migration_id = find_migration(await client.list_migrations(), typed).migration_id
        reply = await client.cancel(migration_id)
    if not reply.accepted:
        raise UsageError(
            f"migration {migration_id} cannot be cancelled any more: {reply.reason or 'it is past COMMIT'}",
            hint=f"`phaul status {migration_id}` says how it stands.",
        )
    if json_output:
        print_object({"event": "cancel", "migration_id": migration_id, "accepted": True, "exit_status": 0})
    else:
        console = make_console()
        console.print(f"Migration {migration_id} is being rolled back; the workload goes on where it was.")
        console.print(f"`phaul watch {migration_id}` shows it to the end.", style="dim")
    return 0


async def _follow(path: Path, migration_id: str, json_output: bool) -> int:
    from phaul.cli.follow import follow
    from phaul.cli.screens import make_screen

    interactive = not json_output and sys.stdin.isatty() and can_redraw(make_console())
    return await follow(path, migration_id, make_screen(json_output=json_output), interactive=interactive)
