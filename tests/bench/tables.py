"""What the benchmark prints: the comparison, the profile, the machine. Used by `__main__`."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from phaul.lab.cluster import Lab
from phaul.units import format_bytes, format_us
from tests.bench.figures import Comparison, Pair
from tests.bench.moves import Move

WIDTH = 120


def machine(lab: Lab) -> dict[str, str | int]:
    """What the figures were measured on."""
    host = next(iter(lab.hosts.values()))
    cpu_lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    # Asked from inside: the kernel answers by the network namespace of who reads.
    control = host.exec(["cat", "/proc/sys/net/ipv4/tcp_congestion_control"]).stdout.strip()
    return {
        "cpu": cpu_lines[0].partition(":")[2].strip() if cpu_lines else platform.machine(),
        "cpus": len(cpu_lines),
        "kernel": platform.release(),
        "criu": host.exec(["criu", "--version"]).stdout.split()[1],
        "congestion_control": control,
    }


def machine_line(found: dict[str, str | int]) -> str:
    """The same in a line."""
    return "{cpus} × {cpu}, Linux {kernel}, CRIU {criu}, TCP {congestion_control}".format(**found)


def print_comparison(console: Console, comparisons: Sequence[Comparison]) -> None:
    """The table of medians and ratios."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("MEMORY", justify="right")
    table.add_column("")
    for title in ("PHAUL", "BY HAND", "RATIO", "MIN", "MAX", "TARGET"):
        table.add_column(title, justify="right")
    table.add_column("")
    for comparison in comparisons:
        show = format_bytes if comparison.quantity == "bytes" else format_us
        target = comparison.target
        table.add_row(
            f"{comparison.mib} MiB",
            comparison.quantity,
            show(comparison.phaul),
            show(comparison.by_hand),
            f"{comparison.ratio:.2f}",
            f"{comparison.smallest_ratio:.2f}",
            f"{comparison.largest_ratio:.2f}",
            "" if target is None else f"{target:.2f}",
            "" if target is None else ("reached" if comparison.reached else "NOT REACHED"),
        )
    console.print(table)


def move_line(mib: int, move: Move) -> str:
    """One move in a line, told while the benchmark runs."""
    said = "" if move.reported_downtime_us is None else f" (phaul says {format_us(move.reported_downtime_us)})"
    return (
        f"{mib:5} MiB  {move.method:8} {move.source} to {move.destination}"
        f"  downtime {format_us(move.downtime_us):>8}  total {format_us(move.total_us):>8}{said}"
    )


def print_profile(console: Console, mib: int, pairs: Sequence[Pair]) -> None:
    """Where the time of each method went: medians of its steps, and CRIU's own statistics."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=f"{mib} MiB", title_justify="left")
    for title, justify in (("METHOD", "left"), ("STEP", "left"), ("START", "right"), ("TIME", "right")):
        table.add_column(title, justify="right" if justify == "right" else "left")
    for moves in ([pair.phaul for pair in pairs], [pair.by_hand for pair in pairs]):
        for name, start, duration in _median_steps(moves):
            table.add_row(moves[0].method, name, format_us(start), format_us(duration))
    console.print(table)
    counters = Table(box=None, pad_edge=False, header_style="bold")
    counters.add_column("CRIU'S STATISTICS (µs, pages)")
    counters.add_column("PHAUL", justify="right")
    counters.add_column("BY HAND", justify="right")
    names = sorted({name for pair in pairs for move in (pair.phaul, pair.by_hand) for name in move.statistics or ()})
    for name in names:
        counters.add_row(
            name,
            _median_counter([pair.phaul for pair in pairs], name),
            _median_counter([p.by_hand for p in pairs], name),
        )
    console.print(counters)


def _median_steps(moves: Sequence[Move]) -> list[tuple[str, float, float]]:
    names = list(dict.fromkeys(step.name for move in moves for step in move.steps))
    found = []
    for name in names:
        steps = [step for move in moves for step in move.steps if step.name == name]
        start = statistics.median(step.start_us for step in steps)
        found.append((name, start, statistics.median(step.duration_us for step in steps)))
    return sorted(found, key=lambda step: step[1])


def _median_counter(moves: Sequence[Move], name: str) -> str:
    values = [move.statistics[name] for move in moves if move.statistics and name in move.statistics]
    return f"{statistics.median(values):.0f}" if values else ""
