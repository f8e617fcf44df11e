"""`phaul dirty-rate`: how fast a workload writes to its memory, where, and what downtime to expect of a migration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from phaul.cli import options
from phaul.cli.console import Glyphs, clean, glyphs_for, make_console
from phaul.cli.display import counted
from phaul.cli.machine import message_object, print_object
from phaul.cli.run import run_command
from phaul.errors import UsageError
from phaul.rpc.v1.dirty_rate_pb2 import (
    DirtyMapping,
    DirtyMethod,
    DirtyRate,
    DirtyRateReport,
    DirtyRateRequest,
    DowntimeForecast,
    MemoryKind,
)
from phaul.units import format_bytes, format_rate, format_us, parse_seconds

EPILOG = """[bold]Examples[/]

phaul dirty-rate 4711

phaul dirty-rate $(pidof redis-server) --seconds 10 --to b.example

phaul dirty-rate 4711 --to b.example --max-downtime 200ms --json

[bold]Exit status[/]

0 measured, whatever came out · 2 usage · 10 no such process, or it is being migrated · 11 an agent does not answer
"""

ROWS_SHOWN = 12
KIND_NAMES = {
    MemoryKind.MEMORY_KIND_HEAP: "heap",
    MemoryKind.MEMORY_KIND_STACK: "stack",
    MemoryKind.MEMORY_KIND_ANONYMOUS: "anonymous",
    MemoryKind.MEMORY_KIND_SHARED: "shared memory",
    MemoryKind.MEMORY_KIND_FILE: "file, private",
    MemoryKind.MEMORY_KIND_SHARED_FILE: "file, shared",
}


def dirty_rate(
    pid: Annotated[int, typer.Argument(metavar="PID", min=1, help="Root task of the workload, with all below it.")],
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="N", help="How long to watch. Nothing is stopped meanwhile.")
    ] = 2.0,
    to: Annotated[
        str, typer.Option("--to", metavar="HOST[:PORT]", help="Also say what downtime to expect of a migration there.")
    ] = "",
    max_downtime: Annotated[
        str, typer.Option("--max-downtime", metavar="TIME", help="The downtime wished for, with --to. Default: 500ms.")
    ] = "0",
    json_output: options.JsonOption = False,
    socket: options.SocketOption = None,
) -> None:
    """Say how fast a process tree writes to its memory, and where; with --to, what downtime a migration would have.

    Nothing is migrated and nothing is stopped. Where the kernel notes writes (soft-dirty) every page is watched;
    elsewhere pages chosen at random are read and compared, which is an estimate. Each page counts once, however often
    it is written to: over a longer time the rate gets lower. Refused while the workload is being migrated.
    """
    request = build_request(pid, seconds, to, max_downtime)
    run_command(_dirty_rate(options.socket_path(socket), request, json_output), json_output=json_output)


def build_request(pid: int, seconds: float, to: str, max_downtime: str) -> DirtyRateRequest:
    """Read what was typed; raises `UsageError` before any agent is asked."""
    from phaul.agent.destination import parse_destination

    try:
        wish_seconds = parse_seconds(max_downtime)
    except ValueError as error:
        raise UsageError(f"--max-downtime: {error}") from error
    return DirtyRateRequest(
        root_pid=pid,
        seconds=seconds,
        destination=str(parse_destination(to)) if to else "",
        max_downtime_seconds=wish_seconds,
    )


async def _dirty_rate(path: Path, request: DirtyRateRequest, json_output: bool) -> int:
    from phaul.agent.client import AgentClient

    console = make_console()
    async with AgentClient(path) as client:
        if json_output or not console.is_terminal:
            report = await client.dirty_rate(request)
        else:
            with console.status(f"Watching PID {request.root_pid} for {format_us(request.seconds * 1e6)}"):
                report = await client.dirty_rate(request)
    if json_output:
        print_object({"event": "dirty_rate"} | message_object(report))
    else:
        console.print(dirty_rate_report(report, glyphs_for(console)))
    return 0


def dirty_rate_report(report: DirtyRateReport, glyphs: Glyphs) -> RenderableType:
    """Draw what was measured, and the forecast if there is one."""
    rate = report.rate
    head = Text(clean(rate.command) or f"PID {rate.root_pid}", style="bold")
    head.append(f" (PID {rate.root_pid})", style="not bold")
    size = [counted(rate.processes, "process", "processes"), f"{format_bytes(rate.memory_bytes)} of memory"]
    head.append(f"\n{glyphs.dot.join(size)}", style="not bold dim")
    parts: list[RenderableType] = [head, Text(""), _rate_line(report), _method_line(rate), Text("")]
    written = [each for each in rate.mappings if each.dirty_bytes]
    parts.append(_mapping_table(written, rate.interval_us))
    others = [*written[ROWS_SHOWN:], *(each for each in rate.mappings if not each.dirty_bytes)]
    if others:
        of_all = format_bytes(sum(each.resident_bytes for each in others))
        less = "less or not at all" if len(written) > ROWS_SHOWN else "not written to"
        parts.append(Text(f"{counted(len(others), 'other mapping')}, {of_all}: {less}", style="dim"))
    parts += [Text(""), _curve_line(rate, glyphs)]
    if report.HasField("forecast"):
        parts += [Text(""), _forecast(report.forecast, glyphs)]
    return Group(*parts)


def _rate_line(report: DirtyRateReport) -> Text:
    rate = report.rate
    text = Text("It writes to ", style="")
    text.append(format_rate(report.dirty_bytes_per_second), style="bold")
    if rate.uncertainty_bytes:
        text.append(f" (give or take {format_rate(rate.uncertainty_bytes * 1e6 / max(1, rate.interval_us))})")
    text.append(f": {format_bytes(rate.dirty_bytes)} of distinct pages in {format_us(rate.interval_us)}")
    return text


def _method_line(rate: DirtyRate) -> Text:
    if rate.method == DirtyMethod.DIRTY_METHOD_SOFT_DIRTY:
        return Text(f"exact: the kernel noted writes to all {rate.pages_watched} pages (soft-dirty)", style="dim")
    which = f"{rate.pages_watched} pages chosen at random" if rate.uncertainty_bytes else "all pages"
    return Text(f"an estimate: {which} were compared, as this kernel does not note writes", style="dim")


def _mapping_table(mappings: Sequence[DirtyMapping], interval_us: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("MEMORY", no_wrap=True)
    table.add_column("MAPPED FROM", overflow="fold")
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("WRITTEN TO", justify="right", no_wrap=True)
    table.add_column("RATE", justify="right", no_wrap=True)
    for each in mappings[:ROWS_SHOWN]:
        travels = each.kind != MemoryKind.MEMORY_KIND_SHARED_FILE
        table.add_row(
            KIND_NAMES.get(each.kind, "other"),
            clean(each.path) + ("" if travels else " (does not travel)"),
            format_bytes(each.resident_bytes),
            format_bytes(each.dirty_bytes),
            format_rate(each.dirty_bytes * 1e6 / max(1, interval_us)),
            style="" if travels else "dim",
        )
    return table


def _curve_line(rate: DirtyRate, glyphs: Glyphs) -> Text:
    points = [f"{format_bytes(point.dirty_bytes)} in {format_us(point.interval_us)}" for point in rate.curve]
    return Text(f"distinct pages written to: {glyphs.dot.join(points)}", style="dim")


def _forecast(forecast: DowntimeForecast, glyphs: Glyphs) -> RenderableType:
    link = f"{format_rate(forecast.bytes_per_second)}, {clean(forecast.link_source)}"
    known = (
        f"learnt from {counted(forecast.learnt_from, 'earlier migration')}"
        if forecast.learnt_from
        else "assumed, as nothing has moved there yet"
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_row("stop-and-copy", Text(f"about {format_us(forecast.stop_and_copy_us)}", style="bold"))
    grid.add_row("pre-copy", _pre_copy(forecast, glyphs))
    return Group(
        Text(f"Downtime to expect of a migration to {clean(forecast.destination)}", style="bold"),
        grid,
        Text(f"link: {link}{glyphs.dot}freezing and restoring: {known}", style="dim"),
        *([Text(f"{glyphs.hint} {clean(forecast.hint)}", style="cyan")] if forecast.hint else []),
        *(
            [
                Text(
                    f"{glyphs.warning} as things stand it would be refused: {clean(forecast.refusal)}",
                    style="bold yellow",
                )
            ]
            if forecast.refusal
            else []
        ),
    )


def _pre_copy(forecast: DowntimeForecast, glyphs: Glyphs) -> Text:
    if forecast.pre_copy_hindrance:
        return Text(f"not possible: {clean(forecast.pre_copy_hindrance)}", style="yellow")
    text = Text(f"about {format_us(forecast.pre_copy_us)}", style="bold")
    if forecast.pre_copy_fits:
        rounds, wish = counted(forecast.rounds, "round"), format_us(forecast.max_downtime_us)
        text.append(f" after {rounds} {glyphs.done} fits the {wish} wished for", style="green")
    else:
        text.append(f", more than the {format_us(forecast.max_downtime_us)} wished for", style="yellow")
    return text
