"""`phaul migrate` as a person runs it on a host of the lab, its `--json` stream, and what it ended with."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Self

from phaul.lab.host import Host
from phaul.lab.records import child_of

from .clients import Lines

MOVE_SECONDS = 90.0


class Move:
    """One `phaul migrate --json`. Leaving the `with` ends the command, not the migration."""

    def __init__(
        self,
        source: Host,
        pid: int,
        to: str,
        *addresses: str,
        options: Sequence[str] = (),
        patience_seconds: float = MOVE_SECONDS,
    ) -> None:
        moving = [word for address in addresses for word in ("--address", address)]
        self._patience_seconds = patience_seconds  # from one line to the next
        self._unix_to_monotonic = time.monotonic() - time.time()
        self.began = time.monotonic()
        self._process = source.popen(["phaul", "migrate", str(pid), "--to", to, *moving, "--json", *options])
        self._lines = Lines(self._process)
        self.events: list[dict[str, Any]] = []
        self.status: int | None = None
        self.ended = 0.0
        self._complaint = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    @property
    def id(self) -> str:
        """The migration's ID; waits for the first event."""
        if not self.events:
            self._take()
        return str(self.events[0]["migration_id"])

    @property
    def last(self) -> dict[str, Any]:
        """The last line: a result, or an error where nothing was begun."""
        return self.events[-1]

    @property
    def report(self) -> dict[str, Any]:
        """The account of a completed migration."""
        assert self.status == 0, self.told()
        report: dict[str, Any] = self.last["report"]
        return report

    @property
    def error(self) -> dict[str, Any]:
        """The error of a failed one."""
        assert self.status not in (0, None), self.told()
        error: dict[str, Any] = self.last["error"]
        return error

    def phase_at(self, phase: str) -> float:
        """Say when a phase began, on the monotonic clock."""
        (event,) = (each for each in self.events if each["event"] == "phase_started" and each["phase"] == phase)
        return float(event["unix_us"]) / 1e6 + self._unix_to_monotonic

    def wait_phase(self, phase: str) -> None:
        """Wait until a phase has begun."""
        while not any(each["event"] == "phase_started" and each["phase"] == phase for each in self.events):
            assert self._take(), f"it ended before {phase}: {self.told()}"

    def wait_progress(self, done_bytes: int) -> None:
        """Wait until as much memory is on its way."""
        while not any(each["event"] == "progress" and each["done_bytes"] >= done_bytes for each in self.events):
            assert self._take(), f"it ended before {done_bytes} bytes had gone: {self.told()}"

    def send_signal(self, number: signal.Signals) -> None:
        """Send the command a signal (not the nsenter that it runs under)."""
        command = child_of(self._process.pid)
        assert command is not None, f"it has ended: {self.told()}"
        os.kill(command, number)

    @property
    def over(self) -> bool:
        """Whether the command has ended."""
        return self._process.poll() is not None

    def wait(self) -> Self:
        """See it to its end."""
        while self._take():
            pass
        self.ended = time.monotonic()
        self.status = self._process.wait(10)
        assert self._process.stderr is not None
        self._complaint = self._process.stderr.read()
        return self

    def told(self) -> str:
        """Everything that it printed last, for a failing test."""
        return f"status {self.status}: {json.dumps(self.events[-1:], indent=1)} {self._complaint}"

    def _take(self) -> bool:
        try:
            line = self._lines.next(self._patience_seconds)
        except queue.Empty:
            raise AssertionError(f"nothing for {self._patience_seconds:g} s: {self.told()}") from None
        if line is None:
            return False
        self.events.append(json.loads(line))
        return True


def migrate(source: Host, pid: int, to: str, *addresses: str, options: Sequence[str] = ()) -> Move:
    """Migrate and wait for the end, whatever it is."""
    with Move(source, pid, to, *addresses, options=options) as move:
        return move.wait()


def phaul(host: Host, *words: str, timeout_seconds: float = MOVE_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run another command of phaul on a host."""
    return host.exec(["phaul", *words], check=False, timeout_seconds=timeout_seconds)
