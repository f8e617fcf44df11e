"""Connections whose other end is on one of the two hosts, or moves itself: on the wire before, within a host after."""

from __future__ import annotations

from .clients import Numbering
from .hooking import noted, put
from .moves import Move, migrate
from .stage import Stage

PORT = 7802


def test_a_peer_on_the_source_and_then_on_the_destination(stage: Stage) -> None:
    """There: both ends on one host become two hosts; back: the peer is on the destination, and they are one again."""
    full = stage.ip4
    address = stage.add_address(full)
    pid = stage.start("server", "--listen", address, str(PORT))
    with Numbering(stage.a, (address, PORT)) as peer, Numbering(stage.client, (address, PORT)) as client:
        for each in (peer, client):
            stage.wait_exchange(each)
        for source in (stage.a, stage.b, stage.a):
            move = stage.move(pid, source, full)
            for each in (peer, client):
                stage.wait_exchange(each)
            on_destination = [each["message"] for each in move.events if each["event"] == "warning"]
            assert any(f"leads to {stage.other(source).name} itself" in each for each in on_destination) == (
                source is stage.b
            )
        stage.check_ticks(pid, stage.a, stage.b, stage.a, stage.b)
        for each in (peer, client):
            (account,) = each.finish()
            account.check(move.phase_at("freeze"), move.ended, finished=True)


def test_a_peer_that_has_the_moving_address_for_its_own_is_refused(stage: Stage) -> None:
    """To an IPv6 address of its host the kernel connects from that very address, which leaves the host."""
    address = stage.add_address(stage.ip6)
    pid = stage.start("server", "--listen", address, str(PORT))
    with Numbering(stage.a, (address, PORT)) as peer:
        stage.wait_exchange(peer)
        error = stage.refused(pid, stage.ip6)
        assert "a process of the same host that would stay there" in error["message"]
        stage.wait_exchange(peer)


def test_a_peer_on_the_destination_outlives_a_rollback(stage: Stage) -> None:
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT))
    with Numbering(stage.b, (address, PORT)) as peer, noted((stage.a, stage.b), ()):
        stage.wait_exchange(peer)
        put(stage.b, "post-restore", "fail", "#!/bin/sh\nexit 1\n")
        move = migrate(stage.a, pid, "b", stage.ip4)
        assert move.error["code"] == "HookError", move.told()
        stage.wait_exchange(peer)
        stage.check_ticks(pid, stage.a)
        (account,) = peer.finish()
        account.check(move.phase_at("freeze"), move.ended, finished=True)


def test_both_ends_move_at_the_same_time(stage: Stage) -> None:
    """Two workloads with an address each, one talking to the other, in two migrations that go on side by side."""
    number = int(stage.ip4.partition("/")[0].rpartition(".")[2])
    first, second = stage.ip4, f"10.77.0.{number + 80}/24"
    listening, own = stage.add_address(first), stage.add_address(second)
    server = stage.start("server", "--listen", listening, str(PORT))
    talker = stage.start("talker", own, listening, str(PORT))
    for source, destination in ((stage.a, stage.b), (stage.b, stage.a)):
        stage.wait_work(talker, {0: stage.work_done(talker)[0] + 30})
        with (
            Move(source, server, destination.name, first) as one,
            Move(source, talker, destination.name, second) as other,
        ):
            assert (one.wait().status, other.wait().status) == (0, 0), (one.told(), other.told())
        stage.wait_work(talker, {0: stage.work_done(talker)[0] + 30})
    for pid in (server, talker):
        ticks = stage.check_ticks(pid, stage.a, stage.b, stage.a)
    assert ticks[-1].errors == 0
