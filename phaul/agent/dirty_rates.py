"""`phaul dirty-rate` in the agent: measures a workload, asks the destination, and says what downtime to expect.

Owned by `agent.agent_service`. Moves nothing and stops nothing. Refused for a workload that is on its way: the kernel
keeps one set of notes of what was written, and pre-copy relies on them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from phaul.agent.destination import own_address_towards, parse_destination
from phaul.agent.history import History
from phaul.agent.outgoing import OutgoingMigrations
from phaul.errors import PreflightError, UsageError
from phaul.migration.convergence import DEFAULT_MAX_DOWNTIME_US, Contract
from phaul.migration.dirty_rate import (
    DirtyRate,
    DirtyRateReport,
    DirtyRateRequest,
    DowntimeForecast,
    Link,
    rehearse,
)
from phaul.migration.facts import AddressFacts, CheckReport, MigrationRequest, Severity
from phaul.migration.forecast import Outcome, costs_of, line
from phaul.migration.interfaces import OutcomeStore
from phaul.migration.learning import known
from phaul.migration.mode import TRACKING
from phaul.rpc.v1 import agent_pb2
from phaul.system import procfs
from phaul.units import MIB, format_rate

LEAST_SECONDS, MOST_SECONDS = 0.2, 600.0
TELLING_BYTES = 16 * MIB  # a migration that sent less says nothing of the link
# What CRIU sends on a link that does not limit it: one thread copies pages (`make bench`: 1 GiB in 0.4 s to 2 s).
MOST_BYTES_PER_SECOND = 600 * MIB
ASSUMED_BYTES_PER_SECOND = 110 * MIB  # 1 Gbit/s
LOOKED_BACK = 8  # earlier migrations to the same host
SPEEDS = Path("/sys/class/net")

Measure = Callable[[int, float], Awaitable[DirtyRate]]


class DirtyRates:
    """Answers requests. Holds nothing of its own."""

    def __init__(
        self, migrations: OutgoingMigrations, history: History, outcomes: OutcomeStore, measure: Measure
    ) -> None:
        self._migrations = migrations
        self._history = history
        self._outcomes = outcomes
        self._measure = measure

    async def report(self, request: DirtyRateRequest) -> DirtyRateReport:
        """Measure and, where a destination is named, predict. Raises `PreflightError`, `UnreachableError`."""
        if not LEAST_SECONDS <= request.seconds <= MOST_SECONDS:
            raise UsageError(f"--seconds must be from {LEAST_SECONDS:g} to {MOST_SECONDS:g}, not {request.seconds:g}")
        self._refuse_moving(request.root_pid)
        checked: CheckReport | None = None
        if request.destination:  # asked first: what cannot be reached needs no measurement
            checked = await self._migrations.check(MigrationRequest(request.root_pid, request.destination, ()))
        rate = await self._measure(request.root_pid, request.seconds)
        self._refuse_moving(request.root_pid)
        forecast = None if checked is None else await self._forecast(request, rate, checked)
        return DirtyRateReport(rate, round(rate.dirty_bytes_per_second), forecast)

    def _refuse_moving(self, root_pid: int) -> None:
        moving = self._migrations.roots_under_way
        try:
            concerned = {*procfs.walk_tree(root_pid), *procfs.ancestors(root_pid)} & moving.keys()
        except OSError:
            return  # `measure` says what is wrong with it
        for pid in concerned:
            raise PreflightError(
                f"PID {root_pid} is being migrated, by migration {moving[pid]}: its writes are being noted for that",
                hint=f"`phaul watch {moving[pid]}` shows how fast it writes, round by round.",
            )

    async def _forecast(self, request: DirtyRateRequest, rate: DirtyRate, checked: CheckReport) -> DowntimeForecast:
        destination = parse_destination(request.destination)
        reports = self._earlier(str(destination))
        kept = await known(self._outcomes, checked.destination.host_name)
        costs = costs_of((), rate.memory_bytes, kept or lessons(reports))
        link = link_from(reports)
        if link is None:
            where = (destination.host, destination.port, checked.source.addresses)
            link = await asyncio.to_thread(_assumed_link, *where)
        contract = Contract(round(request.max_downtime_seconds * 1e6) or DEFAULT_MAX_DOWNTIME_US)
        return dataclasses.replace(
            rehearse(rate, str(destination), link, costs, contract),
            pre_copy_hindrance=hindrance(checked),
            refusal=next((each.message for each in checked.problems if each.severity is Severity.REFUSES), ""),
        )

    def _earlier(self, peer: str) -> list[agent_pb2.MigrationReport]:
        """Reports of completed migrations to a host, newest first."""
        return [
            each.report
            for each in self._history.newest_first()
            if each.role == agent_pb2.ROLE_SOURCE
            and each.outcome == agent_pb2.OUTCOME_COMPLETED
            and each.peer == peer
            and each.HasField("report")
        ][:LOOKED_BACK]


def hindrance(checked: CheckReport) -> str:
    """Why there can be no pre-copy between two hosts; "" where there can."""
    if TRACKING not in checked.source.features:
        return f"{checked.source.host_name}'s kernel cannot track which memory is written"
    return ""


def lessons(reports: Sequence[agent_pb2.MigrationReport]) -> tuple[Outcome, ...]:
    """What completed stop-and-copies say of freezing and restoring between two hosts, oldest first."""
    points = [(float(each.memory_bytes), float(dump_us_of(each))) for each in reports if is_telling(each)]
    freeze_us, _ = line(points)
    return tuple(
        Outcome(each.memory_bytes, 0, round(freeze_us), max(0, each.downtime_us - dump_us_of(each)))
        for each in reversed(reports)
        if is_telling(each)
    )


def link_from(reports: Sequence[agent_pb2.MigrationReport]) -> Link | None:
    """How fast memory went in earlier migrations; None where there was none that says."""
    points = [point for point in map(_sending, reports) if point[0] >= TELLING_BYTES and point[1] > 0]
    _, us_per_byte = line(points)
    if not us_per_byte:
        return None
    count = "an earlier migration" if len(points) == 1 else f"{len(points)} earlier migrations"
    return Link(round(1e6 / us_per_byte), f"measured in {count}")


def _sending(report: agent_pb2.MigrationReport) -> tuple[float, float]:
    """Bytes of pages that a migration sent, and the microseconds it took, what a round costs besides included."""
    rounds_us = sum(each.duration_us for each in report.phases if each.phase == agent_pb2.PHASE_PRECOPY)
    return float(report.sent_bytes or report.memory_bytes), float(rounds_us + dump_us_of(report))


def is_telling(report: agent_pb2.MigrationReport) -> bool:
    """Whether all of the memory went in the freeze."""
    return report.rounds == 0 and dump_us_of(report) > 0


def dump_us_of(report: agent_pb2.MigrationReport) -> int:
    """How long the dump took, the sending of the memory included."""
    return sum(step.duration_us for step in report.steps if step.name == "dump")


def _assumed_link(host: str, port: int, addresses: Sequence[AddressFacts]) -> Link:
    """What the device towards a host says of itself. Blocks."""
    speed = _device_bytes_per_second(host, port, addresses)
    if speed is None:
        return Link(ASSUMED_BYTES_PER_SECOND, "assumed: 1 Gbit/s")
    device, bytes_per_second = speed
    if bytes_per_second > MOST_BYTES_PER_SECOND:
        rate = format_rate(MOST_BYTES_PER_SECOND)
        return Link(MOST_BYTES_PER_SECOND, f"assumed: {device} is faster than the {rate} that one dump sends")
    return Link(bytes_per_second, f"assumed: the speed of {device}")


def _device_bytes_per_second(host: str, port: int, addresses: Sequence[AddressFacts]) -> tuple[str, int] | None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        own = own_address_towards(found[0][0], (str(found[0][4][0]), port))
        device = next(each.device for each in addresses if each.address == own)
        megabits = int((SPEEDS / device / "speed").read_text())
    except (OSError, StopIteration, ValueError):
        return None  # no such name, loopback, or a device without a speed (a bridge without ports, a tunnel)
    # 0.94: what remains for TCP's payload on Ethernet.
    return (device, round(megabits * 1e6 / 8 * 0.94)) if megabits > 0 else None
