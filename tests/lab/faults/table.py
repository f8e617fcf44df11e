"""The table of the results: a line a cell on the terminal, and the page docs/faults.md."""

from __future__ import annotations

from collections.abc import Sequence

from .runner import Result

PAGE = "docs/faults.md"


def line(result: Result) -> str:
    """Say all of a cell in one line, and what is wrong in more."""
    status = "-" if result.status is None else str(result.status)
    first = (
        f"{'ok  ' if result.safe and not result.left and result.connection == 'alive' else 'safe' if result.safe else 'BAD '} "
        f"{result.cell!s:36} {result.runs_on:12} gap {result.gap_seconds:6.2f} s  {result.connection:8} "
        f"exit {status:>3} {result.told:20} ({result.took_seconds:.1f} s)"
    )
    more = [*result.wrong, *(f"left: {left}" for left in result.left), *result.notes]
    return "\n      ".join([first, *more])


def write(results: Sequence[Result]) -> None:
    """Keep the table."""
    raise NotImplementedError
