"""`python -m tests.bench --compression`: the same compressible workload moved with `--compress auto` and `none`.

In alternation, as the benchmark against CRIU by hand, and on two links: one of 1 Gbit/s, where compression shall pay,
and the lab's own, where deciding against it shall cost next to nothing. The first pair on each warms up and does not
count. Needs root, and the lab.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from phaul.errors import PhaulError
from phaul.lab.cluster import Lab
from phaul.units import format_bytes, format_us
from tests.bench import by_phaul
from tests.bench.moves import Move
from tests.bench.scene import BenchError, Scene, warm_memory
from tests.lab.faults.link import Link

CHOICES = ("auto", "none")
MIB = 1024
WARM_MIB = 3 * MIB + 512


@dataclass(frozen=True, slots=True)
class Case:
    """A link, and how the total time with `auto` shall compare to that with `none` on it."""

    name: str
    rate: str  # as tc(8) has it; "" for the lab's own
    target: float
    pairs: int


CASES = (Case("1 Gbit/s", "1gbit", 0.50, 1), Case("unlimited", "", 1.05, 5))

Pair = dict[str, Move]


def measure(scene: Scene, pid: int, case: Case, say: Callable[[str], None]) -> list[Pair]:
    """Move the workload to and fro, once with each choice a pair; give the pairs but the first."""
    pairs = []
    for number in range(case.pairs + 1):
        order = CHOICES if number % 2 else tuple(reversed(CHOICES))
        pair: Pair = {}
        for choice, (source, destination) in zip(order, (("a", "b"), ("b", "a")), strict=True):
            warm_memory(WARM_MIB)
            move = by_phaul.move(scene, pid, source, destination, ("--mode", "stop-and-copy", "--compress", choice))
            pair[choice] = move
            note = "" if number else " (warm-up)"
            say(f"{case.name}, {choice}: {format_us(move.total_us)}, {format_bytes(move.sent_bytes)} sent{note}")
        pairs.append(pair)
    return pairs[1:]


def ratio(pairs: list[Pair]) -> float:
    """The median of the pairs' ratios of total times."""
    return statistics.median(pair["auto"].total_us / pair["none"].total_us for pair in pairs)


def run(*, strict: bool) -> int:
    """Run the benchmark; give the exit status."""
    progress = Console(highlight=False, stderr=True, soft_wrap=True)
    table = Table("link", "auto", "none", "ratio", "target", "sent", title=f"{MIB} MiB, compressible: total time")
    reached = True
    try:
        with (
            Lab.up(f"bench-{os.getpid()}", progress=progress.print) as lab,
            Scene(lab) as scene,
            scene.workload(MIB, content="compressible") as pid,
        ):
            checksum = scene.checksum()
            link = Link(lab)
            for case in CASES:
                if case.rate:
                    link.slow(case.rate)
                pairs = measure(scene, pid, case, progress.print)
                link.heal()
                found = ratio(pairs)
                reached &= found <= case.target
                times = (statistics.median(pair[choice].total_us for pair in pairs) for choice in CHOICES)
                sent = " / ".join(format_bytes(pairs[-1][choice].sent_bytes) for choice in CHOICES)
                table.add_row(case.name, *map(format_us, times), f"{found:.2f}", f"{case.target:.2f}", sent)
            if scene.checksum() != checksum:
                raise BenchError("The workload's memory has changed on the way.")
    except (PhaulError, BenchError) as error:
        progress.print(f"The benchmark failed: {error}")
        return 1
    Console(highlight=False).print(table)
    return 1 if strict and not reached else 0
