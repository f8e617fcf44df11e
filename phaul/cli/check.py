"""`phaul check`: all that preflight found, as `migrate --dry-run` shows it too; and how one problem looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from phaul.cli import options
from phaul.cli.console import Glyphs, clean, glyphs_for, make_console
from phaul.cli.display import counted, indented, workload_size
from phaul.cli.machine import message_object, print_object
from phaul.cli.run import run_command
from phaul.cli.view import refuses
from phaul.errors import PreflightError
from phaul.migration.check_report import GROUPS, OTHER_GROUP, group_of
from phaul.rpc.v1.facts_pb2 import CheckReport, ConnectionFacts, HostFacts, Problem, WorkloadFacts
from phaul.units import format_bytes, format_us

if TYPE_CHECKING:
    from phaul.cli.migrate import Typed

CONNECTIONS_SHOWN = 6  # more would push the verdict off the screen

EPILOG = """[bold]Examples[/]

phaul check 4711 --to b.example

phaul check $(pidof redis-server) --to 10.0.0.2 --address 10.0.0.50/24 --json

[bold]Exit status[/]

0 it may go · 10 it may not · 2 usage · 11 no agent answers · 12 not trusted. Nothing is touched in any case.
"""


def check(
    pid: Annotated[
        int, typer.Argument(metavar="PID", min=1, help="Root task of the workload: it and all below it are looked at.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="HOST[:PORT]", help="Destination, where an agent listens.")],
    address: Annotated[
        list[str] | None,
        typer.Option(
            "--address",
            metavar="IP/PREFIX[@DEVICE]",
            help="Address that shall move along, or `auto`. May be given several times.",
        ),
    ] = None,
    drop_unaccepted: Annotated[
        bool,
        typer.Option("--drop-unaccepted", help="Accept the loss of connections that wait in a listen queue."),
    ] = False,
    hook: options.HookOption = None,
    new_address: options.NewAddressOption = None,
    new_gateway: options.NewGatewayOption = None,
    new_mac: options.NewMacOption = None,
    hostname: options.HostNameOption = "",
    json_output: options.JsonOption = False,
    socket: options.SocketOption = None,
) -> None:
    """Say whether a process tree could move, and all that is in the way, each with what to do about it.

    Looks at the workload and at both hosts, and touches nothing. `phaul migrate` checks the same again.
    """
    path = options.socket_path(socket)
    from phaul.cli.migrate import Typed, absolute  # which shows reports with this module

    typed = Typed(
        addresses=tuple(address or ()),
        drop_unaccepted=drop_unaccepted,
        hooks=absolute(hook or ()),
        new_addresses=tuple(new_address or ()),
        new_macs=tuple(new_mac or ()),
        host_name=hostname,
        new_gateways=tuple(new_gateway or ()),
    )
    run_command(_check(path, pid, to, typed, json_output), json_output=json_output)


async def _check(path: Path, pid: int, to: str, typed: Typed, json_output: bool) -> int:
    from phaul.agent.client import AgentClient
    from phaul.cli.migrate import build_request

    request = build_request(pid, to, typed)
    async with AgentClient(path) as client:
        return print_check(await client.check(request), json_output=json_output)


def print_check(report: CheckReport, *, json_output: bool) -> int:
    """Print the report; gives 0 where the workload may go, else the exit status of a refusal."""
    refused = any(refuses(problem) for problem in report.problems)
    status = PreflightError.exit_status if refused else 0
    if json_output:
        told = message_object(report)
        told["problems"] = [{"group": group_of(each["code"])} | each for each in told["problems"]]
        print_object({"event": "check", "may_go": not refused, "exit_status": status} | told)
    else:
        console = make_console()
        console.print(check_report(report, glyphs_for(console)))
    return status


def check_report(report: CheckReport, glyphs: Glyphs) -> RenderableType:
    """Draw the workload, the two hosts, what refuses, what warns, what is fine, and the verdict."""
    refusals = [problem for problem in report.problems if refuses(problem)]
    warnings = [problem for problem in report.problems if not refuses(problem)]
    parts: list[RenderableType] = [_workload(report.workload, glyphs), Text("")]
    parts += [indented(_hosts(report.source, report.destination)), Text("")]
    for title, style, problems in (("Refused", "bold red", refusals), ("Warnings", "bold yellow", warnings)):
        parts += _grouped(title, style, problems, glyphs)
    if report.fine:
        parts += [Text("Fine", style="bold green")]
        parts += [Text(f"  {glyphs.done} {clean(each)}", style="dim") for each in report.fine] + [Text("")]
    if report.source_hooks or report.destination_hooks:
        parts += [Text("Action scripts that would be run", style="bold"), indented(_hooks(report)), Text("")]
    if report.expected_downtime_us:
        pause = format_us(report.expected_downtime_us)
        parts += [Text(f"Expected downtime: about {pause}; less with pre-copy.")]
    if refusals:
        verdict = Text(f"Refused: {counted(len(refusals), 'problem')}. Nothing was touched.", style="bold red")
    elif warnings:
        verdict = Text(
            f"It may go, with {counted(len(warnings), 'warning')}. Nothing was touched.", style="bold yellow"
        )
    else:
        verdict = Text(f"{glyphs.done} It may go. Nothing was touched.", style="bold green")
    return Group(*parts, verdict)


def _grouped(title: str, style: str, problems: Sequence[Problem], glyphs: Glyphs) -> list[RenderableType]:
    """Draw problems of one severity below the headings that the guide has."""
    parts: list[RenderableType] = []
    for group in (*GROUPS, OTHER_GROUP):
        found = [problem for problem in problems if group_of(problem.code) == group]
        if found:
            parts += [Text(f"{title} {glyphs.hint} {group}", style=style)]
            parts += [indented(problem_lines(problem, glyphs)) for problem in found] + [Text("")]
    return parts


def problem_lines(problem: Problem, glyphs: Glyphs) -> RenderableType:
    """Draw one problem with its hint below it."""
    mark, style = (glyphs.failed, "bold red") if refuses(problem) else (glyphs.warning, "bold yellow")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_row(Text(mark, style=style), Text(clean(problem.message)))
    if problem.hint:
        grid.add_row("", Text(f"{glyphs.hint} {clean(problem.hint)}", style="cyan"))
    return grid


def _hooks(report: CheckReport) -> RenderableType:
    """Draw every hook by host and stage, in the order in which they run."""
    grid = Table.grid(padding=(0, 2))
    for _ in range(3):
        grid.add_column()
    for host, style, hooks in (
        ("source", "cyan", report.source_hooks),
        ("destination", "magenta", report.destination_hooks),
    ):
        for hook in hooks:
            grid.add_row(Text(host, style=style), clean(hook.stage) or "every stage", Text(clean(hook.path)))
    return grid


def _workload(workload: WorkloadFacts, glyphs: Glyphs) -> RenderableType:
    command = clean(workload.tasks[0].command) if workload.tasks else ""
    text = Text(command or f"PID {workload.root_pid}", style="bold")
    text.append(f" (PID {workload.root_pid})" if command else "", style="not bold")
    flowing = [each for each in workload.connections if each.remote_port]
    size = workload_size(len(workload.tasks), workload.memory_bytes, len(flowing), glyphs)
    if size:
        text.append(f"\n{size}{glyphs.dot}{counted(len(workload.files), 'file')}", style="not bold dim")
    for connection in workload.connections[:CONNECTIONS_SHOWN]:
        text.append(f"\n  {_connection(connection)}", style="not bold dim")
    left_out = len(workload.connections) - CONNECTIONS_SHOWN
    if left_out > 0:
        text.append(f"\n  and {left_out} more", style="not bold dim")
    return text


def _connection(connection: ConnectionFacts) -> str:
    state = clean(connection.state)
    text = f"{clean(connection.protocol)} {_endpoint(connection.local_address, connection.local_port)}"
    if connection.remote_port:
        return f"{text} with {_endpoint(connection.remote_address, connection.remote_port)}, {state}"
    waiting = f", {connection.unaccepted} not yet accepted" if connection.unaccepted else ""
    return f"{text}, {state}{waiting}"


def _endpoint(address: str, port: int) -> str:
    return f"[{clean(address)}]:{port}" if ":" in address else f"{clean(address)}:{port}"


def _hosts(source: HostFacts, destination: HostFacts) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    grid.add_column()
    grid.add_row("", Text("source", style="cyan"), Text("destination", style="magenta"))
    for label, left, right in zip(HOST_LABELS, host_values(source), host_values(destination), strict=True):
        differs = label in _MUST_MATCH and left != right and right
        grid.add_row(label, Text(left), Text(right, style="yellow" if differs else ""))
    return grid


HOST_LABELS = ("host", "phaul", "kernel", "architecture", "CRIU", "memory free", "addresses")
_MUST_MATCH = ("phaul", "architecture")


def host_values(host: HostFacts) -> tuple[str, ...]:
    """Give what is said of a host, in the order of `HOST_LABELS`; "" where it is not known."""
    page_size = f", pages of {format_bytes(host.page_size_bytes)}" if host.page_size_bytes else ""
    return (
        clean(host.host_name),
        clean(host.phaul_version),
        clean(host.kernel_release),
        clean(host.architecture) + page_size,
        f"{clean(host.criu_version)} ({clean(host.criu_path)})" if host.criu_version else "none that works",
        format_bytes(host.memory_available_bytes) if host.memory_available_bytes else "",
        "\n".join(f"{clean(each.address)}/{each.prefix_length}@{clean(each.device)}" for each in host.addresses),
    )
