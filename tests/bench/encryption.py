"""`python -m tests.bench --encryption`: the same dump with the page channel encrypted and in the clear, in alternation.

Between pairs the agents are started anew, since it is theirs to decide (`--page-encryption`). The rate is that of the
dump: memory by the time from the freeze until CRIU has written all of it into the channel. The first pair warms up and
does not count. Needs root, and the lab.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from phaul.errors import PhaulError
from phaul.lab.cluster import Lab
from phaul.units import MIB, format_rate
from tests.bench import by_phaul
from tests.bench.moves import Move
from tests.bench.scene import BenchError, Scene, warm_memory

CHOICES = ("on", "off")
MEMORY_MIB = 1024
WARM_MIB = 3 * MEMORY_MIB + 512
TARGET = 0.6  # of the rate in the clear
OPTIONS = ("--mode", "stop-and-copy", "--compress", "none")

Pair = dict[str, float]


def rate(move: Move) -> float:
    """Bytes a second of a move's dump."""
    (dump,) = (step for step in move.steps if step.name == "dump (source)")
    return MEMORY_MIB * MIB / dump.duration_us * 1e6


def ratio(pairs: list[Pair]) -> float:
    """The median of the pairs' ratios of rates."""
    return statistics.median(pair["on"] / pair["off"] for pair in pairs)


def measure(lab: Lab, scene: Scene, pid: int, runs: int, say: Callable[[str], None]) -> list[Pair]:
    """Move the workload to and fro, once with each choice a pair; give the pairs' rates but the first's."""
    pairs = []
    for number in range(runs + 1):
        order = CHOICES if number % 2 else tuple(reversed(CHOICES))
        pair: Pair = {}
        for choice, (source, destination) in zip(order, (("a", "b"), ("b", "a")), strict=True):
            for host in lab.hosts.values():
                host.stop_agent()
                host.start_agent(["--page-encryption", choice])
            warm_memory(WARM_MIB)
            pair[choice] = rate(by_phaul.move(scene, pid, source, destination, OPTIONS))
            note = "" if number else " (warm-up)"
            say(f"encryption {choice}: {format_rate(pair[choice])}{note}")
        pairs.append(pair)
    return pairs[1:]


def table(pairs: list[Pair]) -> Table:
    """Medians, and the ratios pair by pair."""
    columns = ("encrypted", "in the clear", "ratio", "min", "max", "target")
    made = Table(*columns, title=f"{MEMORY_MIB} MiB, {len(pairs)} pairs: rate of the dump")
    rates = (format_rate(statistics.median(pair[choice] for pair in pairs)) for choice in CHOICES)
    each = [pair["on"] / pair["off"] for pair in pairs]
    made.add_row(*rates, *(f"{value:.2f}" for value in (ratio(pairs), min(each), max(each), TARGET)))
    return made


def run(runs: int, *, strict: bool) -> int:
    """Run the benchmark; give the exit status."""
    progress = Console(highlight=False, stderr=True, soft_wrap=True)
    try:
        with (
            Lab.up(f"bench-{os.getpid()}", progress=progress.print) as lab,
            Scene(lab) as scene,
            scene.workload(MEMORY_MIB) as pid,
        ):
            checksum = scene.checksum()
            pairs = measure(lab, scene, pid, runs, progress.print)
            if scene.checksum() != checksum:
                raise BenchError("The workload's memory has changed on the way.")
    except (PhaulError, BenchError) as error:
        progress.print(f"The benchmark failed: {error}")
        return 1
    Console(highlight=False).print(table(pairs))
    return 1 if strict and ratio(pairs) < TARGET else 0
