"""CRIU is killed while it holds the workload, by somebody who is not phaul: an operator, or the kernel out of memory.

The agent is stopped at a point of the migration by its own fault point, so that each case is met exactly. See
docs/design/0007-keeper.md for what is promised and what is not.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from phaul.errors import LabError
from phaul.lab.cluster import Lab
from phaul.lab.host import Host
from phaul.system import keeper, standing_still
from phaul.workloads.restorer import SIGTRAP_BIT

from .clients import Numbering, RedisLoad
from .faults.injection import criu_of, wait_stopped
from .moves import Move, phaul
from .stage import Stage
from .test_migrate_failures import slowed
from .witness import wait_until

PORT = 5000
REDIS_PORT = 6379
MEMORY_MIB = 24
FILL = "for i = 1, 100000 do redis.call('set', 'k' .. i, string.rep('x', 1000)) end"
CANCELLED_STATUS = 25
DUMP_STATUS = 21
QUIET_SECONDS = 0.2  # a workload that ticks every 5 ms and was not seen for so long does not run
KILLS = 15
SEED = 5
WITHIN_SECONDS = 0.01  # of its birth: 20 ms later it is about to freeze the workload
AFTER_THE_GATE = ("transfer", "restore", "switchover", "commit")
OF_AN_AGENT = "descriptors of the agent"  # says nothing of an agent that was started anew


@contextmanager
def stopping_at(lab: Lab, host_name: str, point: str) -> Iterator[Stage]:
    """A stage on which the agent of a host stops itself at a point, and is an ordinary one again afterwards.

    The agent is a new one, and its first migration gives it descriptors that it keeps (gRPC): they are not compared.
    """
    host = lab.host(host_name)
    host.stop_agent()
    host.start_agent(env={"PHAUL_FAULT": f"{point}:stop"})
    try:
        with Stage(lab) as stage:
            stage.before[host].pop(OF_AN_AGENT)
            yield stage
    finally:
        host.kill_agent()
        host.start_agent()


@contextmanager
def server_with_client(stage: Stage) -> Iterator[tuple[int, Numbering]]:
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT), "--memory", str(MEMORY_MIB))
    with Numbering(stage.client, (address, PORT)) as client:
        stage.wait_exchange(client)
        yield pid, client


def catch_and_kill_criu(stage: Stage, move: Move, pid: int) -> None:
    """Wait until the source's agent has stopped itself, kill its CRIU, and see that the workload stands still."""
    wait_stopped(stage.a, lambda: not move.over)
    criu = criu_of(stage.a)
    stage.a.kill(criu)
    wait_until(lambda: state(stage.a, pid) == "T", "the workload is not stopped")
    since = time.monotonic() + QUIET_SECONDS / 2
    time.sleep(QUIET_SECONDS)
    assert not stage.witness.ticks(pid, since=since)


def state(host: Host, pid: int) -> str:
    stat = host.stat(pid)
    return stat.state if stat is not None else ""


def check_connection(stage: Stage, client: Numbering, move: Move) -> None:
    since = time.monotonic()
    stage.wait_exchange(client)
    (account,) = client.finish()
    account.check(move.phase_at("freeze"), since, finished=True)


@pytest.mark.parametrize("phase", AFTER_THE_GATE)
def test_the_migration_goes_on(lab: Lab, phase: str) -> None:
    """Nothing is lost: all is dumped, and the tasks cannot have run since."""
    with stopping_at(lab, "a", f"source.{phase}") as stage, server_with_client(stage) as (pid, client):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            catch_and_kill_criu(stage, move, pid)
            stage.a.kill(stage.a.agent_pid or 0, signal.SIGCONT)
            move.wait()
        assert move.status == 0, move.told()
        stage.check_ticks(pid, stage.a, stage.b)
        assert not stage.a.running(pid)
        check_connection(stage, client, move)


@pytest.mark.parametrize("phase", ["transfer", "restore"])
def test_a_rollback_cures_the_connections(lab: Lab, phase: str) -> None:
    with stopping_at(lab, "a", f"source.{phase}") as stage, server_with_client(stage) as (pid, client):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            migration_id = move.id
            catch_and_kill_criu(stage, move, pid)
            # The destination cannot answer, so that the agent is still in this phase when it hears of the cancelling.
            stage.b.kill(stage.b.agent_pid or 0, signal.SIGSTOP)
            stage.a.kill(stage.a.agent_pid or 0, signal.SIGCONT)
            phaul(stage.a, "cancel", migration_id)
            stage.b.kill(stage.b.agent_pid or 0, signal.SIGCONT)
            move.wait()
        assert move.status == CANCELLED_STATUS, move.told()
        stage.check_ticks(pid, stage.a)
        assert not stage.b.running(pid)
        check_connection(stage, client, move)


@pytest.mark.parametrize("phase", AFTER_THE_GATE)
def test_the_keeper_lets_it_run_when_the_agent_is_killed_too(lab: Lab, phase: str) -> None:
    with stopping_at(lab, "a", f"source.{phase}") as stage, server_with_client(stage) as (pid, client):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            catch_and_kill_criu(stage, move, pid)
            killed_at = time.monotonic()
            stage.a.kill_agent()
            wait_until(lambda: state(stage.a, pid) in ("S", "R"), "the workload stands still")
            assert time.monotonic() - killed_at < 1.0
            stage.a.start_agent()
            move.wait()
        stage.check_ticks(pid, stage.a)
        check_connection(stage, client, move)


def test_the_keeper_lets_it_run_when_only_the_agent_is_killed(lab: Lab) -> None:
    """CRIU thaws the tree by itself then, and the tasks take the SIGSTOP that was meant for another case."""
    with stopping_at(lab, "a", "source.restore") as stage, server_with_client(stage) as (pid, client):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            wait_stopped(stage.a, lambda: not move.over)
            stage.a.kill_agent()
            wait_until(lambda: state(stage.a, pid) in ("S", "R"), "the workload stands still")
            stage.a.start_agent()
            move.wait()
        stage.check_ticks(pid, stage.a)
        check_connection(stage, client, move)


def test_a_restarted_agent_lets_it_run_when_all_three_are_killed(lab: Lab) -> None:
    with stopping_at(lab, "a", "source.restore") as stage, server_with_client(stage) as (pid, client):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            wait_stopped(stage.a, lambda: not move.over)
            agent = stage.a.agent_pid
            for child in stage.a.path(f"/proc/{agent}/task/{agent}/children").read_text().split():
                stage.a.kill(int(child))  # CRIU and the keeper, in either order
            stage.a.kill_agent()
            wait_until(lambda: state(stage.a, pid) == "T", "the workload is not stopped")
            time.sleep(QUIET_SECONDS)
            assert state(stage.a, pid) == "T"
            stage.a.start_agent()
            move.wait()
        stage.check_ticks(pid, stage.a)
        check_connection(stage, client, move)


def test_who_continues_the_tasks_by_hand_ends_the_migration(lab: Lab) -> None:
    """What they have done since the dump is not in the copy: the source is the one to go on."""
    with stopping_at(lab, "a", "source.commit") as stage, server_with_client(stage) as (pid, _):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            catch_and_kill_criu(stage, move, pid)
            stage.a.kill(pid, signal.SIGCONT)
            stage.witness.wait_ticks(pid, since=time.monotonic())
            stage.a.kill(stage.a.agent_pid or 0, signal.SIGCONT)
            move.wait()
        assert move.status == DUMP_STATUS, move.told()
        stage.check_ticks(pid, stage.a)
        assert not stage.b.running(pid)


def test_killed_in_the_middle_of_the_dump(stage: Stage) -> None:
    """No standstill is possible there; the connections are cured before CRIU lets go of the tasks."""
    address = stage.add_address(stage.ip4)
    pid = stage.start_redis(address, REDIS_PORT)
    stage.client.exec(["redis-cli", "-h", address, "-p", str(REDIS_PORT), "eval", FILL, "0"])
    with RedisLoad(stage.client, address, REDIS_PORT) as load:
        load.wait_more(20)
        with slowed(stage), Move(stage.a, pid, "b", stage.ip4) as move:
            move.wait_progress(1 << 20)
            stage.a.kill(criu_of(stage.a))
            move.wait()
        assert move.status == DUMP_STATUS, move.told()
        load.wait_more(20)
        account = load.finish()
        assert not account.error
    assert stage.a.running(pid)
    # Nothing of it is in the way of the next attempt.
    stage.move(pid, stage.a, stage.ip4)


def test_killed_as_it_begins(stage: Stage) -> None:
    """It looks at the kernel first, with children of its own: one of them slept on with all that CRIU had open."""
    moments = random.Random(SEED)
    with server_with_client(stage) as (pid, client):
        for _ in range(KILLS):
            with Move(stage.a, pid, "b", stage.ip4) as move:
                criu = criu_of(stage.a)
                time.sleep(moments.uniform(0, WITHIN_SECONDS))
                stage.a.kill(criu)
                move.wait()
            assert move.status == DUMP_STATUS, move.told()
            assert not criu_processes(stage.a)
        stage.check_ticks(pid, stage.a)
        check_connection(stage, client, move)


def criu_processes(host: Host) -> list[int]:
    pids = [int(entry.name) for entry in host.path("/proc").iterdir() if entry.name.isdigit()]
    stats = [stat for pid in pids if (stat := host.stat(pid)) is not None]
    return [stat.pid for stat in stats if stat.command == "criu" and not stat.is_dead]


def test_the_criu_of_the_destination_is_killed_before_commit(lab: Lab) -> None:
    """The source learns of it only when it asks for RESUME: the copy is made again from the images then."""
    with stopping_at(lab, "a", "source.switchover") as stage, server_with_client(stage) as (pid, client):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            wait_stopped(stage.a, lambda: not move.over)
            stage.b.kill(criu_of(stage.b))
            stage.a.kill(stage.a.agent_pid or 0, signal.SIGCONT)
            move.wait()
        assert move.status == 0, move.told()
        stage.check_ticks(pid, stage.a, stage.b)
        check_connection(stage, client, move)


def test_the_criu_of_the_destination_is_killed_before_a_rollback(lab: Lab) -> None:
    """No half-made copy may keep the PIDs taken: the next migration goes through."""
    with stopping_at(lab, "a", "source.switchover") as stage, server_with_client(stage) as (pid, client):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            wait_stopped(stage.a, lambda: not move.over)
            stage.b.kill(criu_of(stage.b))
            stage.a.kill_agent()
            stage.a.start_agent()
            move.wait()
        stage.check_ticks(pid, stage.a)
        wait_until(lambda: not stage.b.running(pid), "a half-made copy is still there")
        stage.move(pid, stage.a, stage.ip4)
        stage.check_ticks(pid, stage.a, stage.b)
        check_connection(stage, client, move)  # last: the server may send to a client that has left, and tell of it


def test_the_criu_of_the_destination_is_killed_after_commit(lab: Lab) -> None:
    """The source's tree is dead: the copy is made again from the verified images."""
    with stopping_at(lab, "b", "destination.resume") as stage, server_with_client(stage) as (pid, client):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            wait_stopped(stage.b, lambda: not move.over)
            criu = criu_of(stage.b)
            stage.b.kill(criu)
            stage.b.kill(stage.b.agent_pid or 0, signal.SIGCONT)
            move.wait()
        assert move.status == 0, move.told()
        stage.check_ticks(pid, stage.a, stage.b)
        check_connection(stage, client, move)


@pytest.mark.parametrize("guarded", [True, False])
def test_the_criu_of_the_destination_is_killed_with_its_agent_after_commit(lab: Lab, guarded: bool) -> None:
    """Nobody is left to let the copy run: its guard ends it.

    Without a guard it waits in CRIU's restorer, alive and for good. It is no running copy.
    """
    with stopping_at(lab, "b", "destination.resume") as stage, server_with_client(stage) as (pid, client):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            wait_stopped(stage.b, lambda: not move.over)
            criu = criu_of(stage.b)
            if not guarded:
                stage.b.kill(guard_of(stage.b))
                time.sleep(QUIET_SECONDS)
            stage.b.kill(criu)
            if guarded:
                wait_until(lambda: not stage.b.running(pid), "the guard does not end the copy")
            stage.b.kill_agent()
            time.sleep(QUIET_SECONDS)
            assert stage.b.running(pid) is not guarded
            stage.b.start_agent()
            move.wait()
        assert move.status == 0, move.told()
        stage.check_ticks(pid, stage.a, stage.b)
        check_connection(stage, client, move)


@pytest.mark.parametrize("delay_seconds", [0.0, 0.0005, 0.001, 0.002])
def test_the_criu_of_the_destination_is_killed_as_it_lets_the_copy_go(lab: Lab, delay_seconds: float) -> None:
    """Its connections are out of repair mode, and it has run nothing: it ends unheard, and another one takes over.

    Or CRIU was past all that: then the copy runs on.
    """
    with stopping_at(lab, "b", "destination.resume") as stage, server_with_client(stage) as (pid, client):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            wait_stopped(stage.b, lambda: not move.over)
            criu = criu_of(stage.b)
            status = stage.b.path(f"/proc/{pid}/status")
            stage.b.kill(stage.b.agent_pid or 0, signal.SIGCONT)
            while stage.b.stat(criu) is not None and not waits_for_a_trap(status.read_text()):
                pass
            time.sleep(delay_seconds)
            with suppress(LabError, OSError):  # CRIU was faster
                stage.b.kill(criu)
            move.wait()
        assert move.status == 0, move.told()
        stage.check_ticks(pid, stage.a, stage.b)
        check_connection(stage, client, move)


def guard_of(host: Host) -> int:
    """Give the process that watches CRIU for the agent."""
    thread = field(host.path(f"/proc/{criu_of(host)}/status").read_text(), "TracerPid")
    guard = int(field(host.path(f"/proc/{thread}/status").read_text(), "Tgid"))
    assert keeper.__name__ in host.path(f"/proc/{guard}/cmdline").read_text()
    return guard


def field(status: str, name: str) -> str:
    """Give one line's value of proc_pid_status(5)."""
    (value,) = (line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:"))
    return value


def waits_for_a_trap(status: str) -> bool:
    """Whether a task is in the last stage of CRIU's restorer, which unblocks SIGTRAP."""
    return not int(field(status, "SigBlk"), 16) & SIGTRAP_BIT


def test_the_standstill_is_not_in_the_images(stage: Stage) -> None:
    """The copy has no SIGSTOP pending, and a rolled back workload has none either."""
    pid = stage.start("server")
    stage.move(pid, stage.a)
    status = stage.b.path(f"/proc/{pid}/status").read_text()
    assert not int(field(status, "ShdPnd"), 16) & standing_still.STOP_BIT
    assert state(stage.b, pid) in ("S", "R")
