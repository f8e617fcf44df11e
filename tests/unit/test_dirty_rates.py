"""What earlier migrations, and the hosts themselves, say of the downtime that `phaul dirty-rate` predicts."""

from __future__ import annotations

import pytest

from phaul.agent.dirty_rates import lessons, link_from
from phaul.rpc.v1 import agent_pb2
from phaul.units import MIB


def stop_and_copy(memory_bytes: int, dump_us: int, downtime_us: int) -> agent_pb2.MigrationReport:
    steps = [agent_pb2.Step(name="dump", duration_us=dump_us), agent_pb2.Step(name="restore", duration_us=1)]
    return agent_pb2.MigrationReport(memory_bytes=memory_bytes, downtime_us=downtime_us, steps=steps)


def test_earlier_migrations_tell_how_fast_the_link_is() -> None:
    assert link_from([]) is None
    assert link_from([stop_and_copy(1 * MIB, 20_000, 40_000)]) is None
    reports = [stop_and_copy(size * MIB, 20_000 + size * 1_000, 0) for size in (256, 64, 128)]
    link = link_from(reports)
    assert link is not None
    assert link.bytes_per_second == pytest.approx(1000 * MIB, rel=0.01)
    assert "3 earlier migrations" in link.source


def test_earlier_migrations_tell_what_a_restore_costs() -> None:
    newest_first = [stop_and_copy(256 * MIB, 276_000, 600_000), stop_and_copy(64 * MIB, 84_000, 200_000)]
    learnt = lessons(newest_first)
    assert [each.memory_bytes for each in learnt] == [64 * MIB, 256 * MIB]
    assert [each.restore_us for each in learnt] == [116_000, 324_000]
    assert all(each.freeze_us == pytest.approx(20_000, abs=100) for each in learnt)
