"""Workloads with a network namespace of their own: it moves with them, and nothing has to be named."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from phaul.lab.cluster import Lab
from phaul.lab.host import Host

from .boxes import BRIDGE, Box, on_bridges
from .clients import Numbering
from .moves import Move, migrate
from .stage import Stage
from .witness import faults, wait_until

PORT = 5000
LONGEST_GAP_SECONDS = 3.0
PING = ["ping", "-c", "1", "-W", "2"]


@pytest.fixture
def stage(stage: Stage) -> Stage:
    """The lab for one test, its hosts' devices on bridges."""
    on_bridges(stage)
    return stage


def check_ticks(stage: Stage, box: Box, pid: int) -> None:
    """All ticks come from the address of the namespace, each once at most.

    One that fell into the fence is lost. The copy's neighbour table is empty: what waits there for the first answer to
    ARP may be overtaken.
    """
    ticks = stage.witness.ticks(pid)
    stage.witness.wait_ticks(pid, 20, since=ticks[-1].arrived)
    bearable = (" lost ", "out of order")
    found = [each for each in faults(stage.witness.ticks(pid), [box.ip4]) if not any(word in each for word in bearable)]
    assert not found, found


@pytest.mark.parametrize("kind", ["veth", "macvlan"])
def test_a_namespace_moves_with_its_workload(stage: Stage, kind: str) -> None:
    with Box(stage, kind, addresses=["198.18.0.1/32"]) as box:
        box.sysctl(stage.a, "net.ipv4.tcp_keepalive_time", "77")
        box.sysctl(stage.a, "net.ipv4.ip_local_port_range", "20000\t30000")
        pid = box.serve(PORT)
        addresses = [(box.ip4, PORT), (box.ip6, PORT)]
        with Numbering(stage.client, *addresses * 2) as client:
            stage.wait_exchange(client)
            before = shown(box, stage.a)
            for source, destination in ((stage.a, stage.b), (stage.b, stage.a)):
                move = migrate(source, pid, destination.name)
                assert move.report["new_pid"] == pid
                source.wait_ended(pid, 10)
                assert destination.running(pid)
                stage.wait_exchange(client)
                for account in client.report():
                    account.check(move.phase_at("freeze"), move.ended)
                    assert account.longest_gap(move.began) < LONGEST_GAP_SECONDS
                assert shown(box, destination) == before
                assert box.sysctl(destination, "net.ipv4.tcp_keepalive_time") == "77"
                assert box.sysctl(destination, "net.ipv4.ip_local_port_range") == "20000\t30000"
                check_ticks(stage, box, pid)
                assert box.name not in source.exec(["ip", "netns", "list"]).stdout
                assert box.outer not in source.exec(["ip", "-br", "link"]).stdout
            for account in client.finish():
                account.check(move.phase_at("freeze"), move.ended, finished=True)
        stage.client.exec([*PING, box.ip4])
        stage.client.exec([*PING, box.ip6])


def shown(box: Box, host: Host) -> list[str]:
    """What `ip` says of a namespace, without what follows from the kernel's own numbering."""
    text = box.shown(host, "-o", "addr") + box.shown(host, "route") + box.shown(host, "-6", "route")
    return sorted(" ".join(line.replace(" nodad", "").replace(" tentative", "").split()) for line in text.splitlines())


# Who dies at which point, and where the workload runs when all agents live again.
CRASHES = [
    ("a", "source.restore", "a"),  # the tree is frozen, the copy not there yet
    ("a", "source.resume", "b"),  # the tree is dead, the destination does not know
    ("b", "destination.restore", "a"),  # the copy is held
    ("b", "destination.resume", "b"),  # the copy may run, and is made again
]


@pytest.mark.parametrize(("host", "point", "ends_on"), CRASHES, ids=[point for _, point, _ in CRASHES])
def test_no_crash_leaves_two_or_none(lab: Lab, host: str, point: str, ends_on: str) -> None:
    """Connections live on wherever it ends, and no device, fence or name is left on the other host."""
    with dying_at(lab, host, point) as stage, Box(stage) as box:
        pid = box.serve(PORT)
        with Numbering(stage.client, (box.ip4, PORT), (box.ip6, PORT)) as client:
            stage.wait_exchange(client)
            with Move(stage.a, pid, "b") as move:
                move.wait_phase("freeze")
                dying = lab.host(host)
                wait_until(lambda: dying.agent_pid is None, f"the agent of {host} does not die")
                dying.launch_agent()
                dying.wait_agent()
            back = time.monotonic()
            stage.wait_exchange(client)
            assert [each.name for each in (stage.a, stage.b) if each.running(pid)] == [ends_on]
            other = stage.other(lab.host(ends_on))
            wait_until(lambda: box.outer not in other.exec(["ip", "-br", "link"]).stdout, "its device stays behind")
            wait_until(lambda: box.name not in other.exec(["ip", "netns", "list"]).stdout, "its name stays behind")
            check_ticks(stage, box, pid)
            for account in client.finish():
                account.check(move.phase_at("freeze"), back, finished=True)


@contextmanager
def dying_at(lab: Lab, name: str, point: str) -> Iterator[Stage]:
    """A stage on which the agent of a host kills itself at a point; whoever starts it again starts an ordinary one."""
    host = lab.host(name)
    host.stop_agent()
    host.start_agent(env={"PHAUL_FAULT": f"{point}:kill"})
    with Stage(lab) as stage:
        on_bridges(stage)
        for each in (stage.a, stage.b):
            stage.before[each].pop("descriptors of the agent")  # says nothing of an agent that was started anew
        yield stage


def test_what_cannot_move_is_refused(stage: Stage) -> None:
    with Box(stage) as box:
        pid = box.serve(PORT)
        second = box.spawn("sleep", "1000")
        assert "has process" in stage.refused(pid)["message"]
        stage.a.kill(second)
        box.shown(stage.a, "link", "add", "inner", "type", "bridge")
        assert "inner" in stage.refused(pid)["message"]
        box.shown(stage.a, "link", "del", "inner")
        stage.b.exec(["ip", "netns", "add", box.name])
        assert f"a network namespace {box.name}" in stage.refused(pid)["message"]
        stage.b.exec(["ip", "netns", "del", box.name])
        stage.a.exec(["ip", "link", "set", box.outer, "nomaster"])
        assert "on no bridge" in stage.refused(pid)["message"]
        stage.a.exec(["ip", "link", "add", "br7", "type", "bridge"])
        stage.a.exec(["ip", "link", "set", box.outer, "master", "br7"])
        assert "no bridge br7" in stage.refused(pid)["message"]
        stage.a.exec(["ip", "link", "set", box.outer, "master", BRIDGE])
        stage.a.exec(["ip", "link", "del", "br7"])
        assert "Leave out" in stage.refused(pid, f"{stage.a.ip4}/24")["hint"]
        move = migrate(stage.a, pid, "b")
        assert move.report["new_pid"] == pid
        check_ticks(stage, box, pid)


def test_an_outer_name_that_is_taken(stage: Stage) -> None:
    """A device of that name on the destination is left alone, whatever becomes of the migration."""
    with Box(stage) as box:
        pid = box.serve(PORT)
        stage.b.exec(["ip", "link", "add", box.outer, "type", "bridge"])
        with Move(stage.a, pid, "b") as move:
            move.wait_phase("freeze")
            stage.a.exec(["phaul", "cancel", move.id], check=False)
            move.wait()
        source = stage.a if stage.a.running(pid) else stage.b
        assert source is stage.a or move.status == 0
        if source is stage.a:
            assert migrate(stage.a, pid, "b").report["new_pid"] == pid
        assert f"{box.outer}:" in stage.b.exec(["ip", "-o", "link"]).stdout
        stage.client.exec([*PING, box.ip4])
        check_ticks(stage, box, pid)
