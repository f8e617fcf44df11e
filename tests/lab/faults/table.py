"""The results for people: a line a cell on the terminal, and the page docs/faults.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from .matrix import CELLS, MEANINGS, PHASES, Fault
from .runner import Result

PAGE = "docs/faults.md"
COMMAND = "python -m tests.lab.faults --write"
LONGEST_REMARK = 200  # the names of an image's files tell nobody more

_HEAD = f"""# What faults do to a migration

Every fault in every phase, on real CRIU, in the namespace lab: a workload that ticks every 5 ms to a third host and
exchanges numbered blocks with it over one TCP connection, moved with its address. The third host is the witness; what
phaul says is only recorded. Made by

    {COMMAND}

which replaces this page. A phase is caught by a fault point (`PHAUL_FAULT`, `phaul/observe/fault_points.py`), the
freeze in the middle of the memory on a slowed link.
"""

_LEGEND = """
"As before" at the end of a cell means tables of nftables, rules, addresses, routes, mounts, processes, files, and the
agents' descriptors, on both hosts. A destination that could not be told that all is off holds what it has until its
lease of 60 s lets it ask; the note says so.

Each cell: where the workload runs afterwards (**S**ource, **D**estination), the longest time without a tick in seconds,
the exit status of `phaul migrate` (HUP: it was ended by the signal). `†`: see the notes below. An empty cell cannot be.
"""


def verdict(result: Result) -> str:
    """Say in one word how it went."""
    if not result.safe:
        return "BAD"
    return "ok" if result.connection == "alive" and not result.left else "safe"


def line(result: Result) -> str:
    """Say all of a cell in one line, and what there is to say besides in more."""
    first = (
        f"{verdict(result):4} {result.cell!s:34} {result.runs_on:12} gap {result.gap_seconds:6.2f} s  "
        f"{result.connection:8} exit {_status(result):>3} {result.told:20} ({result.took_seconds:.1f} s)"
    )
    return "\n      ".join([first, *_remarks(result)])


def page(results: Sequence[Result]) -> str:
    """Give the page."""
    by_cell = {result.cell: result for result in results}
    lines = [_HEAD, "", "| fault | " + " | ".join(PHASES) + " |", "|---" * (len(PHASES) + 1) + "|"]
    for fault in Fault:
        row = []
        for phase in PHASES:
            found = next((by_cell[cell] for cell in by_cell if (cell.phase, cell.fault) == (phase, fault)), None)
            row.append(_cell(found) if found else "")
        lines.append(f"| {fault} | " + " | ".join(row) + " |")
    counted = Counter(verdict(result) for result in results)
    summary = ", ".join(f"{count} {word}" for word, count in sorted(counted.items()))
    alive = sum(result.connection.startswith("alive") for result in results)
    two = sum(result.runs_on == "both" or bool(result.wrong) for result in results)
    gone = sum(result.runs_on == "neither" for result in results)
    lines += [
        _LEGEND,
        f"{len(results)} of {len(CELLS)} cells ({summary}): two running copies or a tick twice in {two}, the "
        f"workload gone in {gone}, the connection alive in {alive}, something left behind on a host in "
        f"{sum(bool(result.left) for result in results)}.",
        "",
        "## The faults",
        "",
        *(f"- **{fault}**: {meaning}" for fault, meaning in MEANINGS.items()),
    ]
    noted = [result for result in results if _remarks(result)]
    if noted:
        lines += ["", "## Notes", ""]
        lines += [f"- **{result.cell}**: {'; '.join(_remarks(result))}" for result in noted]
    return "\n".join(lines) + "\n"


def write(results: Sequence[Result]) -> None:
    """Keep the page."""
    (Path(__file__).resolve().parents[3] / PAGE).write_text(page(results))


def _cell(result: Result) -> str:
    where = {"source": "S", "destination": "D"}.get(result.runs_on, f"**{result.runs_on.upper()}**")
    return f"{where} {result.gap_seconds:.2f} · {_status(result)}{' †' if _remarks(result) else ''}"


def _status(result: Result) -> str:
    if result.status is None:
        return "-"
    return "HUP" if result.status < 0 else str(result.status)


def _remarks(result: Result) -> list[str]:
    connection = [] if result.connection == "alive" else [f"the client's connection: {result.connection}"]
    return [
        *result.wrong,
        *connection,
        *(f"left on the {shorten(left, LONGEST_REMARK)}" for left in result.left),
        *result.notes,
    ]
