"""The ticking witness: what a host outside has seen of the workloads, and what follows from it.

A workload sends numbered ticks (programs/ticker.py); the client writes down when and from where each came
(programs/recorder.py). A number that comes twice or out of order, or from a host that had handed the workload over, is
split brain; a number that never comes is lost; the longest pause is the downtime as the outside sees it. Phaul is never
asked.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from phaul.lab.host import Host

TICK_PORT = 7000
RECORD = "/tmp/ticks"
PROGRAMS = "/opt/witness"  # where a host has the programs of programs/, as a package
PYTHON = {"PYTHONPATH": "/opt"}
POLL_SECONDS = 0.01
WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick as it arrived; times are seconds on the machine's monotonic clock, which all hosts of a lab share."""

    arrived: float
    sender: str
    instance: str
    stream: int
    pid: int
    sequence: int
    work: int
    errors: int


def parse_tick(line: str) -> Tick:
    """Read a line of the recorder."""
    arrived_ns, sender, instance, *numbers = line.split()
    stream, pid, sequence, work, errors = map(int, numbers)
    return Tick(int(arrived_ns) / 1e9, sender, instance, stream, pid, sequence, work, errors)


class Witness:
    """The recorder on the client. Owns its process until `close`."""

    def __init__(self, client: Host) -> None:
        self._client = client
        self._file = client.path(RECORD)
        self._read_bytes = 0
        self._ticks: list[Tick] = []
        self._pid = client.spawn(["python3", "-m", "witness.recorder", str(TICK_PORT), RECORD], env=PYTHON)
        wait_until(self._file.exists, "the recorder of the ticks does not come up")

    def close(self) -> None:
        """End the recorder."""
        self._client.kill(self._pid)
        self._client.wait_ended(self._pid)
        self._file.unlink(missing_ok=True)

    def ticks(self, root_pid: int, *, since: float = 0.0) -> list[Tick]:
        """Give the ticks of the workload whose process `root_pid` ticks, in the order in which they arrived."""
        self._read()
        instances = {tick.instance for tick in self._ticks if tick.pid == root_pid}
        return [tick for tick in self._ticks if tick.instance in instances and tick.arrived >= since]

    def wait_ticks(self, root_pid: int, count: int = 20, *, since: float = 0.0, sender: str = "") -> list[Tick]:
        """Wait for as many ticks that came after a moment, from one host if named; give all since that moment."""
        found: list[Tick] = []

        def enough() -> bool:
            found[:] = self.ticks(root_pid, since=since)
            return sum(not sender or tick.sender == sender for tick in found) >= count

        wait_until(enough, f"process {root_pid} does not tick" + (f" from {sender}" if sender else ""))
        return found

    def _read(self) -> None:
        with self._file.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._read_bytes += whole
        self._ticks += [parse_tick(line) for line in data[:whole].decode().splitlines()]


def faults(ticks: Sequence[Tick], path: Sequence[str]) -> list[str]:
    """
    Say everything that must not be seen of one workload.

    Args:
        ticks: all of them, from its start on.
        path: the addresses of the hosts that ran it, in order; the copy on one must be silent once the next has spoken.
    """
    found = []
    streams: dict[int, list[Tick]] = defaultdict(list)
    for tick in ticks:
        streams[tick.stream].append(tick)
    for stream, mine in sorted(streams.items()):
        numbers = [tick.sequence for tick in mine]
        if len(set(numbers)) != len(numbers):
            twice = sorted(number for number in set(numbers) if numbers.count(number) > 1)
            found.append(f"stream {stream}: ticked twice: {twice[:5]}")
        elif numbers != sorted(numbers):
            found.append(f"stream {stream}: ticked out of order")
        missing = set(range(1, max(numbers) + 1)) - set(numbers)
        if missing:
            found.append(f"stream {stream}: lost {sorted(missing)[:5]}")
        hosts = [tick.sender for tick in mine]
        visited = [host for index, host in enumerate(hosts) if index == 0 or host != hosts[index - 1]]
        if visited != list(path):
            found.append(f"stream {stream}: ran on {visited}, not on {list(path)}")
        if len({tick.pid for tick in mine}) > 1:
            found.append(f"stream {stream}: has changed its PID")
        if mine[-1].errors:
            found.append(f"stream {stream}: found {mine[-1].errors} errors itself")
    return found


def longest_gap(ticks: Sequence[Tick], *, since: float = 0.0, until: float = float("inf")) -> float:
    """Give the longest time without a tick of the stream that had to wait longest, in seconds, between two moments."""
    streams: dict[int, list[float]] = defaultdict(list)
    for tick in ticks:
        streams[tick.stream].append(tick.arrived)
    return max(
        (
            after - before
            for times in streams.values()
            for before, after in pairwise(times)
            if after > since and before < until
        ),
        default=0.0,
    )


def wait_until(condition: Callable[[], bool], complaint: str, timeout_seconds: float = WAIT_SECONDS) -> None:
    """Wait for a condition; fail with the complaint when it does not come true in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"{complaint} (waited {timeout_seconds:g} s)"
        time.sleep(POLL_SECONDS)
