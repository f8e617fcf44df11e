"""What is told of the steps of an installation while they are done. Used by `install` and shown by `cli.host`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class State(StrEnum):
    """What became of a step."""

    STARTED = "started"
    UNCHANGED = "unchanged"
    FINE = "fine"  # looked at, nothing to do
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of progress. `note`: what was done or found."""

    name: str
    state: State
    note: str = ""


Report = Callable[[Step], None]


class step_of:  # noqa: N801 - reads like a statement
    """Reports the beginning and the end of a step; a failure is for the caller's `PhaulError` to tell."""

    def __init__(self, report: Report, name: str) -> None:
        self._report, self._name = report, name

    def __enter__(self) -> Self:
        self._report(Step(self._name, State.STARTED))
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def unchanged(self, note: str = "") -> None:
        """There was nothing to do."""
        self._report(Step(self._name, State.UNCHANGED, note))

    def done(self, note: str = "") -> None:
        """Something was done."""
        self._report(Step(self._name, State.DONE, note))
