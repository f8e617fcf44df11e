"""`python -m tests.bench` (`make bench`): the same workload moved by phaul and by bare CRIU by hand, in alternation.

Both send the memory in the clear. A pair is one move by each, there and back; who begins changes from pair to pair, so
that neither always has the same direction. The first pair warms up the machine and does not count. Needs root, and the
lab.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable

from rich.console import Console

from phaul.errors import PhaulError
from phaul.lab.cluster import Lab
from tests.bench import by_hand, by_phaul, compression, encryption, machines, tables
from tests.bench.figures import Comparison, Pair, compare
from tests.bench.moves import METHODS, Move
from tests.bench.scene import BenchError, Scene, warm_memory

DEFAULT_SIZES = "16,256,1024"
DEFAULT_RUNS = 5
DEFAULT_MOVES = 10
WARM_FACTOR = 3  # the images and the copy, and some to spare: neither method may be the one that gets fresh memory
WARM_BASE_MIB = 512
MOVERS: dict[str, Callable[[Scene, int, str, str], Move]] = {"phaul": by_phaul.move, "by hand": by_hand.move}
assert tuple(MOVERS) == METHODS


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="phaul against bare CRIU by hand")
    parser.add_argument("--sizes", default=DEFAULT_SIZES, help=f"MiB of memory, with commas ({DEFAULT_SIZES})")
    parser.add_argument("--runs", type=int, default=DEFAULT_RUNS, help=f"pairs that count ({DEFAULT_RUNS})")
    parser.add_argument("--moves", type=int, default=DEFAULT_MOVES, help=f"of --machines' Redis ({DEFAULT_MOVES})")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--profile", action="store_true", help="also print the steps of both and CRIU's statistics")
    parser.add_argument("--sealed", action="store_true", help="phaul encrypts; by hand memory goes in the clear anyway")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is not reached")
    parser.add_argument("--compression", action="store_true", help="instead: --compress auto against none")
    parser.add_argument(
        "--encryption", action="store_true", help="instead: the page channel encrypted against in the clear"
    )
    parser.add_argument("--machines", action="store_true", help="instead: pre-copy between virtual machines")
    parser.add_argument(
        "--parts", default=",".join(machines.PARTS), help=f"of --machines, with commas ({','.join(machines.PARTS)})"
    )
    arguments = parser.parse_args()
    try:
        arguments.sizes = [int(size) for size in arguments.sizes.split(",")]
    except ValueError:
        parser.error("--sizes takes numbers with commas")
    if arguments.runs < 1 or min(arguments.sizes) < 1:
        parser.error("--runs and --sizes must be at least 1")
    return arguments


def measure(scene: Scene, mib: int, runs: int, say: Callable[[str], None]) -> list[Pair]:
    """Move one workload of this size to and fro; give the pairs without the first, which only warms up."""
    pairs = []
    with scene.workload(mib) as pid:
        checksum = scene.checksum()
        for number in range(runs + 1):
            order = METHODS if number % 2 else tuple(reversed(METHODS))
            moves = {}
            for method, (source, destination) in zip(order, (("a", "b"), ("b", "a")), strict=True):
                warm_memory(WARM_FACTOR * mib + WARM_BASE_MIB)
                moves[method] = MOVERS[method](scene, pid, source, destination)
                say(tables.move_line(mib, moves[method]) + ("" if number else "  (warm-up)"))
            pairs.append(Pair(*(moves[method] for method in METHODS)))
        if scene.checksum() != checksum:
            raise BenchError("The workload's memory has changed on the way.")
    return pairs[1:]


def main() -> int:
    """Run the benchmark; give the exit status."""
    arguments = parse_arguments()
    if arguments.compression:
        return compression.run(strict=arguments.strict)
    if arguments.encryption:
        return encryption.run(arguments.runs, strict=arguments.strict)
    if arguments.machines:
        return machines.run(arguments.parts.split(","), arguments.moves, strict=arguments.strict)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else tables.WIDTH)
    progress = Console(highlight=False, stderr=True, soft_wrap=True)
    comparisons: list[Comparison] = []
    measured: dict[int, list[Pair]] = {}
    try:
        with Lab.up(f"bench-{os.getpid()}", agents=False, progress=progress.print) as lab, Scene(lab) as scene:
            for host in lab.hosts.values():
                host.start_agent([] if arguments.sealed else ["--insecure"])
            found = tables.machine(lab)
            for mib in arguments.sizes:
                measured[mib] = measure(scene, mib, arguments.runs, progress.print)
                comparisons += compare(mib, measured[mib])
    except (PhaulError, BenchError) as error:
        progress.print(f"The benchmark failed: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(json.dumps(_as_object(found, comparisons, measured)))
    else:
        console.print(tables.machine_line(found))
        console.print(f"{arguments.runs} pairs; ratios are phaul / by hand, pair by pair\n")
        tables.print_comparison(console, comparisons)
        if arguments.profile:
            for mib, pairs in measured.items():
                console.print()
                tables.print_profile(console, mib, pairs)
    return 1 if arguments.strict and not all(comparison.reached for comparison in comparisons) else 0


def _as_object(
    machine: dict[str, str | int], comparisons: list[Comparison], measured: dict[int, list[Pair]]
) -> dict[str, object]:
    return {
        "machine": machine,
        "comparisons": [
            {**dataclasses.asdict(comparison), "target": comparison.target, "reached": comparison.reached}
            for comparison in comparisons
        ],
        "pairs": {str(mib): [dataclasses.asdict(pair) for pair in pairs] for mib, pairs in measured.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
