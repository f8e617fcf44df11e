"""What a migration looks like: from a `MigrationView` to renderables and lines. Pure; prints nothing, reads no clock.

`screens` shows these; the texts stand at 80 columns and in ASCII as well, and never rely on colour alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from phaul.cli.console import Glyphs, clean
from phaul.cli.view import MigrationView, PhaseState, PhaseView, role_name
from phaul.migration.at_rest import directory_of
from phaul.rpc.v1.agent_pb2 import HookRan, MigrationEvent, MigrationReport, RoundFinished
from phaul.units import format_bytes, format_rate, format_seconds, format_us

INDENT = 2
BAR_COLUMNS = 36  # of the memory bar, and of the timeline of the downtime
LINE_COLUMNS = 76  # of text that is wrapped here and not by the console
ROUNDS_SHOWN = 8  # the newest
HOOKS_SHOWN = 3  # the newest
SPINNER_US = 100_000  # how long one picture of the spinner stays
HOST_STYLES = {"source": "cyan", "destination": "magenta"}


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a bar: from column `offset`, `length` columns long."""

    offset: int
    length: int


def bar_span(start_us: int, duration_us: int, whole_us: int, columns: int) -> Span:
    """Place a step on a bar of `columns` that stands for `whole_us`. At least one column long, never over the edge."""
    if whole_us <= 0:
        return Span(0, columns)
    start = min(max(start_us, 0), whole_us)
    end = min(max(start_us + duration_us, start), whole_us)
    offset = min(start * columns // whole_us, columns - 1)
    return Span(offset, max(1, min(-(-end * columns // whole_us), columns) - offset))


def indented(renderable: RenderableType) -> RenderableType:
    """Move a renderable a little to the right, without filling its lines up to the terminal's edge.

    After a full line the echo of Ctrl-C would begin a new one, which nobody wipes away.
    """
    return Padding(renderable, (0, 0, 0, INDENT), expand=False)


def counted(count: int, one: str, many: str = "") -> str:
    """Give a number with its noun: "1 process", "3 processes"."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def workload_name(view: MigrationView) -> str:
    """Give the workload's command, or its PID where the command is not known."""
    return clean(view.command) or f"PID {view.root_pid}"


def workload_size(processes: int, memory_bytes: int, connections: int, glyphs: Glyphs) -> str:
    """Say how much there is to move; "" before preflight has looked."""
    if not processes:
        return ""
    parts = [
        counted(processes, "process", "processes"),
        f"{format_bytes(memory_bytes)} of memory",
        counted(connections, "connection"),
    ]
    return glyphs.dot.join(parts)


def header(view: MigrationView, glyphs: Glyphs) -> Text:
    """Say what goes where, and how large it is."""
    text = Text("Moving ")
    text.append(workload_name(view), style="bold")
    if view.command:
        text.append(f" (PID {view.root_pid})")
    text.append(f" {glyphs.arrow} ")
    text.append(clean(view.destination), style="bold")
    size = workload_size(view.processes, view.memory_bytes, view.connections, glyphs)
    text.append(f"\n{size or 'looking at the workload' + glyphs.ellipsis}", style="dim")
    text.append(f"{glyphs.dot}migration {clean(view.migration_id)}", style="dim")
    return text


def live(view: MigrationView, now_unix_us: int, glyphs: Glyphs) -> RenderableType:
    """Draw the display that is painted over while a migration runs."""
    phases = Table.grid(padding=(0, 1))
    phases.add_column(width=2)
    phases.add_column(min_width=12)
    phases.add_column(min_width=9, justify="right")
    for phase in view.phases:
        mark, style = _mark(phase, now_unix_us, glyphs)
        elapsed = format_us(phase.elapsed_us(now_unix_us))
        phases.add_row(Text(mark, style=style), Text(phase.name, style=style), Text(elapsed))
    if not view.outcome:
        for name in view.pending:
            phases.add_row(Text(glyphs.pending, style="dim"), Text(name, style="dim"), Text(""))
    below = Text(f"elapsed {format_us(view.elapsed_us(now_unix_us))}", style="dim")
    if not view.outcome:
        below.append(f"{glyphs.dot}Ctrl-C asks what to do", style="dim")
    parts: list[RenderableType] = [header(view, glyphs), Text(""), phases, Text("")]
    if view.rounds:
        parts += [rounds(view, glyphs), Text("")]
    parts.append(memory_bar(view, glyphs))
    parts += [Text(hook_line(ran, glyphs), style="dim") for ran in view.hooks[-HOOKS_SHOWN:]]
    parts += [_warning_line(warning, glyphs) for warning in view.warnings]
    return indented(Group(*parts, below))


def memory_bar(view: MigrationView, glyphs: Glyphs) -> RenderableType:
    """Draw how much of the memory has gone, how fast, and how long the rest will take."""
    share = view.share or 0.0
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(width=BAR_COLUMNS)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(Text("memory"), ProgressBar(100, share * 100, BAR_COLUMNS), Text(f"{share:.0%}" if view.share else ""))
    return Group(grid, Text(f"       {memory_text(view, glyphs)}", style="dim"))


def memory_text(view: MigrationView, glyphs: Glyphs) -> str:
    """Say in words what `memory_bar` draws; "nothing sent yet" before the first byte."""
    if not view.done_bytes:
        return "nothing sent yet"
    sent = f"{format_bytes(view.done_bytes)} of {format_bytes(view.total_bytes)}"
    parts = ["all sent" if view.memory_sent else sent]
    if view.bytes_per_second:
        parts.append(format_rate(view.bytes_per_second))
    if view.eta_seconds:
        parts.append(f"{format_seconds(view.eta_seconds)} left")
    return glyphs.dot.join(parts)


def rounds(view: MigrationView, glyphs: Glyphs) -> RenderableType:
    """Draw what each round of pre-copy brought, the newest last, and what follows it."""
    grid = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for title in ("round", "sent", "in", "writes", "downtime then"):
        grid.add_column(title, justify="right", no_wrap=True)
    for each in view.rounds[-ROUNDS_SHOWN:]:
        predicted = Text(format_us(each.predicted_downtime_us))
        if each.predicted_downtime_us > each.wished_downtime_us:
            predicted.append(f" > {format_us(each.wished_downtime_us)}", style="yellow")
        writes = format_rate(each.dirty_bytes_per_second) if each.dirty_bytes_per_second else ""
        grid.add_row(str(each.number), format_bytes(each.page_bytes), format_us(each.send_us), writes, predicted)
    return Group(grid, Text(f"{glyphs.arrow} {clean(view.rounds[-1].next)}", style="dim"))


def phases_line(view: MigrationView, glyphs: Glyphs) -> Text:
    """Give every phase that took place with its time, wrapped between phases so that it fits 80 columns."""
    text = Text()
    used = 0
    for phase in view.phases:
        failed = phase.state is PhaseState.FAILED
        label = f"{glyphs.failed} {phase.name}" if failed else phase.name
        piece = f"{label} {format_us(phase.elapsed_us(phase.started_unix_us))}"
        if used and used + len(glyphs.dot) + len(piece) > LINE_COLUMNS:
            text.append("\n")
            used = 0
        elif used:
            text.append(glyphs.dot, style="dim")
            used += len(glyphs.dot)
        text.append(piece, style="bold red" if failed else "dim")
        used += len(piece)
    return text


def summary(view: MigrationView, glyphs: Glyphs) -> RenderableType:
    """Say how a completed migration went: the figures, and where the time went."""
    report = view.report or MigrationReport()
    text = Text(f"{glyphs.done} ", style="bold green")
    directory = directory_of(view.destination)
    if directory is None:
        runs = f"{workload_name(view)} runs on {clean(view.destination)} as PID {report.new_pid}"
    else:
        runs = f"{workload_name(view)} was dumped into {clean(directory)}"
    text.append(runs, style="bold")
    figures = Table.grid(padding=(0, 2))
    figures.add_column(no_wrap=True)
    figures.add_column(no_wrap=True, justify="right")
    figures.add_column(style="dim")
    if directory is None:
        downtime = Text(format_us(report.downtime_us), style="bold")
        figures.add_row("downtime", downtime, "source stopped until destination ran")
    if report.predicted_downtime_us:
        figures.add_row("predicted", format_us(report.predicted_downtime_us), "the downtime, right before the freeze")
    figures.add_row("freeze time", format_us(report.freeze_us), "tasks stopped on the source")
    figures.add_row("total time", format_us(report.total_us), "from preflight until it ran" if not directory else "")
    wire_bytes = report.wire_bytes or report.memory_bytes
    figures.add_row("sent", format_bytes(wire_bytes + report.image_bytes), _sent(report))
    moved = [counted(report.processes, "process", "processes")]
    if not directory:
        moved.append(counted(report.connections, "connection"))
    moved += [clean(address) for address in report.addresses]
    figures.add_row("moved" if not directory else "dumped", "", Text(glyphs.dot.join(moved)))
    parts: list[RenderableType] = [text, Text(""), indented(figures)]
    if view.rounds:
        parts += [Text(""), indented(rounds(view, glyphs))]
    if view.phases:
        parts += [Text(""), indented(phases_line(view, glyphs))]
    if report.steps and not directory:
        parts += [Text(""), indented(timeline(report, glyphs))]
    if view.hooks:
        lines = [line for ran in view.hooks for line in hook_lines(ran, glyphs)]
        parts += [Text(""), Text("Action scripts", style="bold"), indented(Text("\n".join(lines), style="dim"))]
    if view.warnings:
        parts += [Text(""), *(indented(_warning_line(warning, glyphs)) for warning in view.warnings)]
    return Group(*parts)


def timeline(report: MigrationReport, glyphs: Glyphs) -> RenderableType:
    """Draw where the downtime went: a bar a step, all on the same axis, which begins at the freeze."""
    whole_us = max([report.downtime_us, *(step.start_us + step.duration_us for step in report.steps)])
    grid = Table.grid(padding=(0, 1))
    grid.add_column(max_width=18, overflow="ellipsis", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(width=BAR_COLUMNS, no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    for step in report.steps:
        host = role_name(step.host)
        style = HOST_STYLES.get(host, "")
        span = bar_span(step.start_us, step.duration_us, whole_us, BAR_COLUMNS)
        bar = Text(" " * span.offset + glyphs.bar * span.length, style=style)
        grid.add_row(Text(clean(step.name)), Text(host, style=style), bar, Text(format_us(step.duration_us)))
    return Group(Text(f"Where the downtime went ({format_us(report.downtime_us)})", style="bold"), grid)


def plain_lines(before: MigrationView, after: MigrationView, event: MigrationEvent, glyphs: Glyphs) -> list[str]:
    """Give the lines that one event adds where nothing can be painted over. Progress adds none: see `progress_line`."""
    at = f"[{format_us(after.elapsed_us(event.unix_us)):>9}]"
    match event.WhichOneof("kind"):
        case "started" if not before.command and not before.root_pid:
            name = workload_name(after) + (f" (PID {after.root_pid})" if after.command else "")
            where = f"{glyphs.arrow} {clean(after.destination)}"
            return [f"Moving {name} {where}, migration {clean(after.migration_id)}", *_size_lines(after, at, glyphs)]
        case "started" if not before.processes:
            return _size_lines(after, at, glyphs)
        case "phase_started" if after.current is not None:
            return [f"{at} {after.current.name}"]
        case "mode_chosen":
            return [f"{at} {after.mode}: {clean(after.mode_reason)}"]
        case "round_finished":
            return [f"{at} {_round_line(event.round_finished, glyphs)}"]
        case "hook_ran":
            return [f"{at} {line}" for line in hook_lines(event.hook_ran, glyphs)]
        case "warning":
            return [f"{at} warning: {clean(event.warning.message)}"]
        case _:
            return []


def progress_line(view: MigrationView, now_unix_us: int, glyphs: Glyphs) -> str:
    """Give the line that says how far the memory is; the caller decides how often."""
    share = f"{view.share:.0%}" if view.share is not None else ""
    return f"[{format_us(view.elapsed_us(now_unix_us)):>9}] memory {share}{glyphs.dot}{memory_text(view, glyphs)}"


def hook_line(ran: HookRan, glyphs: Glyphs) -> str:
    """Say how one action script ended."""
    parts = [f"{clean(ran.stage)} on the {role_name(ran.host)}: {clean(ran.path)}", format_us(ran.duration_us)]
    return glyphs.dot.join([*parts, f"failed: {clean(ran.problem)}"] if ran.problem else parts)


def hook_lines(ran: HookRan, glyphs: Glyphs) -> list[str]:
    """The same, and below it what the script has said."""
    return [hook_line(ran, glyphs), *(f"  | {clean(line)}" for line in ran.output.splitlines())]


def _size_lines(view: MigrationView, at: str, glyphs: Glyphs) -> list[str]:
    size = workload_size(view.processes, view.memory_bytes, view.connections, glyphs)
    return [f"{at} {size}"] if size else []


def _round_line(finished: RoundFinished, glyphs: Glyphs) -> str:
    parts = [f"round {finished.number}: {format_bytes(finished.page_bytes)} in {format_us(finished.send_us)}"]
    if finished.dirty_bytes_per_second:
        parts.append(f"writes {format_rate(finished.dirty_bytes_per_second)}")
    predicted, wished = format_us(finished.predicted_downtime_us), format_us(finished.wished_downtime_us)
    parts.append(f"downtime would be {predicted} (wished {wished})")
    return glyphs.dot.join([*parts, clean(finished.next)])


def _sent(report: MigrationReport) -> str:
    memory = f"memory {format_bytes(report.sent_bytes or report.memory_bytes)}"
    if report.compressed:
        memory += f" as {format_bytes(report.wire_bytes)}, compressed"
    return f"{memory}, other images {format_bytes(report.image_bytes)}"


def _warning_line(warning: str, glyphs: Glyphs) -> Text:
    return Text(f"{glyphs.warning} {clean(warning)}", style="yellow")


def _mark(phase: PhaseView, now_unix_us: int, glyphs: Glyphs) -> tuple[str, str]:
    match phase.state:
        case PhaseState.DONE:
            return glyphs.done, "green"
        case PhaseState.FAILED:
            return glyphs.failed, "bold red"
        case _:
            return glyphs.spinner[now_unix_us // SPINNER_US % len(glyphs.spinner)], "bold cyan"
