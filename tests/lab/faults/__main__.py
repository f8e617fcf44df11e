"""`python -m tests.lab.faults`: runs the fault matrix, or some cells of it, and prints the table.

With `--write` the table is kept in docs/faults.md. Needs root, and the lab.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from phaul.errors import PhaulError
from phaul.lab.cluster import Lab

from . import table
from .matrix import BY_NAME, CELLS, Cell
from .runner import Result, Runner


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.faults", description="faults in every phase, on real CRIU"
    )
    parser.add_argument("--cells", nargs="+", metavar="PHASE:FAULT", help="only these; either part may be *")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {table.PAGE}")
    arguments = parser.parse_args()
    try:
        arguments.chosen = chosen(arguments.cells or ["*:*"])
    except KeyError as error:
        parser.error(f"there is no cell {error.args[0]}; there are {', '.join(BY_NAME)}")
    return arguments


def chosen(patterns: list[str]) -> list[Cell]:
    """Give the cells that any of the patterns names, in the order of the matrix. Raises `KeyError`."""
    found: set[Cell] = set()
    for pattern in patterns:
        phase, _, fault = pattern.partition(":")
        matching = {cell for cell in CELLS if phase in ("*", cell.phase) and fault in ("*", "", cell.fault)}
        if not matching:
            raise KeyError(pattern)
        found |= matching
    return [cell for cell in CELLS if cell in found]


def main() -> int:
    """Run; give the exit status, 1 when a cell was not safe."""
    arguments = parse_arguments()
    results: list[Result] = []
    began = time.monotonic()
    try:
        with Lab.up(f"faults-{os.getpid()}") as lab:
            runner = Runner(lab)
            for cell in arguments.chosen:
                try:
                    results.append(runner.run(cell))
                except (AssertionError, PhaulError) as error:
                    print(f"{cell}: could not be run: {error}", flush=True)
                    continue
                print(table.line(results[-1]), flush=True)
    except KeyboardInterrupt:
        return 130
    print(f"{len(results)} of {len(arguments.chosen)} cells in {time.monotonic() - began:.0f} s")
    if arguments.write:
        table.write(results)
    return 0 if len(results) == len(arguments.chosen) and all(result.safe for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
