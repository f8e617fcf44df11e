"""`phaul dirty-rate` between two agents: a real process is watched, the other host asked, nothing moved."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from phaul.errors import PreflightError, UnreachableError, UsageError
from phaul.rpc.v1 import agent_pb2
from phaul.rpc.v1.dirty_rate_pb2 import DirtyRateRequest
from phaul.units import MIB

from .conftest import PID, Pair, tree

WRITER = """
import mmap, time
memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
while True:
    for page in range(0, 16 << 20, 4096):
        memory[page] = (memory[page] + 1) % 256
    time.sleep(0.01)
"""


@pytest.fixture
def writer() -> Iterator[int]:
    """A process that writes all over 16 MiB."""
    child = subprocess.Popen([sys.executable, "-c", WRITER], stdin=subprocess.DEVNULL)
    yield child.pid
    child.kill()
    child.wait()


def asking(pid: int, destination: str = "") -> DirtyRateRequest:
    return DirtyRateRequest(root_pid=pid, seconds=0.5, destination=destination)


async def test_a_workload_is_watched(pair: Pair, writer: int) -> None:
    await asyncio.sleep(0.5)
    report = await pair.source.client.dirty_rate(asking(writer))
    assert not report.HasField("forecast")
    assert report.rate.root_pid == writer
    assert 15 * MIB < report.rate.dirty_bytes < 20 * MIB
    assert report.dirty_bytes_per_second == pytest.approx(
        report.rate.dirty_bytes * 1e6 / report.rate.interval_us, rel=0.01
    )


async def test_with_a_destination_it_says_what_downtime_to_expect(pair: Pair, writer: int) -> None:
    await asyncio.sleep(0.5)
    pair.source.machine.trees[writer] = tree(writer)
    report = await pair.source.client.dirty_rate(asking(writer, pair.destination.target))
    forecast = report.forecast
    assert forecast.destination == pair.destination.target
    assert forecast.stop_and_copy_us > 0
    assert forecast.pre_copy_us > 0
    assert forecast.link_source
    assert forecast.max_downtime_us == 500_000
    assert not pair.destination.machine.trees, "nothing was sent there"


async def test_a_destination_that_is_not_there_is_said_before_anything_is_watched(pair: Pair) -> None:
    with pytest.raises(UnreachableError):
        await pair.source.client.dirty_rate(asking(PID, "127.0.0.1:1"))


async def test_what_is_on_its_way_is_refused(pair: Pair, writer: int) -> None:
    pair.source.machine.trees[writer] = tree(writer)
    pair.source.server._migrations._under_way[writer] = "0875e840"
    with pytest.raises(PreflightError, match="is being migrated, by migration 0875e840"):
        await pair.source.client.dirty_rate(asking(writer))


async def test_a_process_that_does_not_exist(pair: Pair) -> None:
    with pytest.raises(PreflightError, match="no process"):
        await pair.source.client.dirty_rate(asking(2**22 - 1))


@pytest.mark.parametrize("seconds", [0.0, 0.1, 10_000.0])
async def test_a_time_that_makes_no_sense(pair: Pair, seconds: float) -> None:
    with pytest.raises(UsageError, match="--seconds"):
        await pair.source.client.dirty_rate(DirtyRateRequest(root_pid=1, seconds=seconds))


async def test_earlier_migrations_are_what_it_learns_from(pair: Pair, writer: int) -> None:
    pair.source.machine.trees[PID] = tree(PID, pages=8192)
    events = await pair.migrate()
    assert events[-1].finished.outcome == agent_pb2.OUTCOME_COMPLETED
    pair.source.machine.trees[writer] = tree(writer)
    report = await pair.source.client.dirty_rate(asking(writer, pair.destination.target))
    assert "earlier migration" in report.forecast.link_source
    assert report.forecast.learnt_from >= 1
