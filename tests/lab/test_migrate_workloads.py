"""Workloads of every kind, moved by `phaul migrate` on real CRIU, and judged by the ticking witness."""

from __future__ import annotations

from .clients import Numbering, RedisLoad
from .stage import SOCKETS, Stage
from .witness import wait_until

PORT = 5000
REDIS_PORT = 6379
TREE = 20
THREADS = 12
SMALL_MIB = 8
BIG_MIB = 1024
CHANGING_MIB = 48
LONGEST_GAP_SECONDS = 3.0  # of an operation of a client; about 0.3 s is usual


def test_one_process_and_back(stage: Stage) -> None:
    pid = stage.start("ticker")
    there = stage.move(pid, stage.a)
    stage.check_downtime(there, stage.check_ticks(pid, stage.a, stage.b))
    back = stage.move(pid, stage.b)
    stage.check_downtime(back, stage.check_ticks(pid, stage.a, stage.b, stage.a))


def test_a_tree_of_twenty_processes(stage: Stage) -> None:
    pid = stage.start("tree", str(TREE), SOCKETS)
    stage.wait_work(pid, dict.fromkeys(range(TREE), 1))
    before = stage.descendants(stage.a, pid)
    assert len(before) == TREE
    for source, path in ((stage.a, [stage.a, stage.b]), (stage.b, [stage.a, stage.b, stage.a])):
        move = stage.move(pid, source)
        assert move.report["processes"] == TREE
        assert stage.descendants(path[-1], pid) == before
        done = stage.work_done(pid)
        ticks = stage.check_ticks(pid, *path)
        # Every process takes part: the token goes round through the pipes, the counter in the memory goes with it.
        stage.wait_work(pid, {stream: work + 3 for stream, work in done.items()})
        stage.check_downtime(move, ticks)


def test_threads(stage: Stage) -> None:
    pid = stage.start("threads", str(THREADS))
    before = stage.thread_ids(stage.a, pid)
    assert len(before) == THREADS
    move = stage.move(pid, stage.a)
    assert stage.thread_ids(stage.b, pid) == before
    ticks = stage.check_ticks(pid, stage.a, stage.b)
    assert {tick.stream for tick in ticks} == set(range(THREADS))
    stage.check_downtime(move, ticks)


def test_redis_under_load(stage: Stage) -> None:
    address = stage.add_address(stage.ip4)
    pid = stage.start_redis(address, REDIS_PORT)
    with RedisLoad(stage.client, address, REDIS_PORT) as load:
        load.wait_more(100)
        for source in (stage.a, stage.b):
            move = stage.move(pid, source, stage.ip4)
            account = load.wait_more(100)
            account.check(move.phase_at("freeze"), move.ended)
            assert account.longest_gap(move.began) < LONGEST_GAP_SECONDS
        load.finish().check(move.phase_at("freeze"), move.ended, finished=True)


def test_a_gibibyte_of_memory(stage: Stage) -> None:
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT), "--memory", str(BIG_MIB))
    content = stage.ask(stage.a, "checksum")
    with Numbering(stage.client, (address, PORT)) as client:
        stage.wait_exchange(client)
        move = stage.move(pid, stage.a, stage.ip4)
        assert move.report["memory_bytes"] >= BIG_MIB << 20
        stage.check_downtime(move, stage.check_ticks(pid, stage.a, stage.b))
        assert stage.ask(stage.b, "checksum") == content
        assert stage.ask(stage.b, "wrong_pages") == []
        (account,) = client.finish()
        account.check(move.phase_at("freeze"), move.ended, finished=True)
        # The freeze is that of a gigabyte, and TCP asks again after 0.2, 0.4, 0.8 and 1.6 s.
        assert account.longest_gap(move.began) < LONGEST_GAP_SECONDS + 2 * move.report["downtime_us"] / 1e6


def test_memory_that_changes_constantly(stage: Stage) -> None:
    pid = stage.start("server", "--memory", str(CHANGING_MIB), "--change")
    stage.wait_work(pid, {0: 2})
    move = stage.move(pid, stage.a)
    assert stage.ask(stage.b, "wrong_pages") == []
    stage.wait_work(pid, {0: stage.work_done(pid)[0] + 1})
    assert stage.ask(stage.b, "wrong_pages") == []
    stage.check_downtime(move, stage.check_ticks(pid, stage.a, stage.b))


def test_the_client_judges_strictly(stage: Stage) -> None:
    """The negative control: a server that dies and is started again is not the same to any of the judges."""
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT))
    with Numbering(stage.client, (address, PORT)) as client:
        stage.wait_exchange(client)
        stage.a.kill(pid)
        wait_until(lambda: client.report()[0].error != "", "the client did not see its server die")
        assert client.report()[0].error in ("EOF", "ECONNRESET")
