"""What preflight found, for `phaul migrate --dry-run`; and how one problem looks, which `doctor` shows as well."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from phaul.cli.console import Glyphs, clean, glyphs_for, make_console
from phaul.cli.display import counted, indented, workload_size
from phaul.cli.machine import message_object, print_object
from phaul.cli.view import refuses
from phaul.errors import PreflightError
from phaul.rpc.v1.facts_pb2 import CheckReport, ConnectionFacts, HostFacts, Problem, WorkloadFacts
from phaul.units import format_bytes

CONNECTIONS_SHOWN = 6  # more would push the verdict off the screen


def print_check(report: CheckReport, *, json_output: bool) -> int:
    """Print the report; gives 0 where the workload may go, else the exit status of a refusal."""
    refused = any(refuses(problem) for problem in report.problems)
    status = PreflightError.exit_status if refused else 0
    if json_output:
        print_object(
            {"event": "check", "may_go": not refused, "exit_status": status} | message_object(report),
        )
    else:
        console = make_console()
        console.print(check_report(report, glyphs_for(console)))
    return status


def check_report(report: CheckReport, glyphs: Glyphs) -> RenderableType:
    """Draw the two hosts, the workload, every problem and the verdict."""
    refusals = [problem for problem in report.problems if refuses(problem)]
    warnings = [problem for problem in report.problems if not refuses(problem)]
    parts: list[RenderableType] = [_workload(report.workload, glyphs), Text("")]
    parts += [indented(_hosts(report.source, report.destination)), Text("")]
    for problem in [*refusals, *warnings]:
        parts += [problem_lines(problem, glyphs)]
    if refusals:
        verdict = Text(f"Refused: {counted(len(refusals), 'problem')}. Nothing was touched.", style="bold red")
    elif warnings:
        verdict = Text(
            f"It may go, with {counted(len(warnings), 'warning')}. Nothing was touched.", style="bold yellow"
        )
    else:
        verdict = Text(f"{glyphs.done} It may go. Nothing was touched.", style="bold green")
    return Group(*parts, *([Text("")] if report.problems else []), verdict)


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
