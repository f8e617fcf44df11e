"""Two hosts that migrate towards each other at the same time, with real CRIU: everything arrives, nobody waits."""

from __future__ import annotations

from contextlib import ExitStack

from .moves import Move
from .stage import Stage

COUNT = 3  # each way
PIDS_OF_B = 30_000  # PIDs are kept: those of one host must be free on the other


def test_three_each_way(stage: Stage) -> None:
    stage.b.exec(["sh", "-c", f"echo {PIDS_OF_B} > /proc/sys/kernel/ns_last_pid"])
    here = [stage.start("ticker") for _ in range(COUNT)]
    there = [stage.start("ticker", host=stage.b) for _ in range(COUNT)]
    assert not set(here) & set(there)
    with ExitStack() as moves:
        under_way = [moves.enter_context(Move(stage.a, pid, "b")) for pid in here]
        under_way += [moves.enter_context(Move(stage.b, pid, "a")) for pid in there]
        for move in under_way:
            move.wait()
        assert [move.told() for move in under_way if move.status != 0] == []
    for pids, path in ((here, (stage.a, stage.b)), (there, (stage.b, stage.a))):
        for pid in pids:
            assert path[-1].running(pid)
            assert not path[0].running(pid)
            stage.check_ticks(pid, *path)
