"""Lazy restore on real CRIU: the workload runs before its pages are loaded, whoever is killed meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from phaul.lab.host import Host

from .clients import Numbering
from .moves import Move, phaul
from .slow_loader import SlowLoader, loaders_on, status_of, wait_loaded
from .stage import Stage
from .witness import wait_until

PORT = 5200
MIB = 256
LOST = "lost"
OF_AN_AGENT = "descriptors of the agent"  # says nothing of an agent that was started anew


@contextmanager
def large_server(stage: Stage) -> Iterator[tuple[int, Numbering, int]]:
    """A workload large enough to be restored lazily, its connected client, and the checksum of its memory."""
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT), "--memory", str(MIB))
    content = stage.ask(stage.a, "checksum")
    with Numbering(stage.client, (address, PORT)) as client:
        stage.wait_exchange(client)
        yield pid, client, content


def check_whole(stage: Stage, pid: int, client: Numbering, content: int, move: Move) -> None:
    """Nothing was lost: of the memory, on the connection, and in the ticks."""
    assert stage.ask(stage.b, "checksum") == content
    stage.wait_exchange(client)
    stage.check_ticks(pid, stage.a, stage.b)
    (account,) = client.finish()
    account.check(move.phase_at("freeze"), move.ended, finished=True)


def loaded_bytes(host: Host, move: Move) -> int:
    """How much the loader of a migration had to load, by its last word; 0 where it was never used."""
    word = host.path(f"/var/lib/phaul/migrations/{move.id}/loading")
    return int(word.read_text().split()[2]) if word.exists() else 0


def test_it_runs_before_its_pages_are_loaded_and_status_shows_it(stage: Stage) -> None:
    with large_server(stage) as (pid, client, content):
        with SlowLoader(stage.b) as slow:
            move = stage.move(pid, stage.a, stage.ip4)
            slow.wait_at_work()
            shown = status_of(stage.b, move.id)
            assert shown["outcome"] == "completed"
            assert 0 < int(shown["loading"]["left_bytes"]) <= int(shown["loading"]["total_bytes"])
            assert "still being loaded" in phaul(stage.b, "status", move.id).stdout
            assert stage.b.path(f"/run/phaul/images/{move.id}").exists()
        wait_loaded(stage.b, move.id)
        assert loaded_bytes(stage.b, move) >= MIB << 20
        assert not loaders_on(stage.b)
        check_whole(stage, pid, client, content, move)


def test_the_agent_is_killed_while_pages_are_being_loaded(stage: Stage) -> None:
    """The copy goes on; the agent that starts next sees the loading through and gives the images back."""
    stage.before[stage.b].pop(OF_AN_AGENT)
    with large_server(stage) as (pid, client, content):
        with SlowLoader(stage.b) as slow:
            move = stage.move(pid, stage.a, stage.ip4)
            slow.wait_at_work()
            stage.b.kill_agent()
            stage.wait_exchange(client)
            assert len(loaders_on(stage.b)) == 2
            stage.b.start_agent()
            assert stage.b.path(f"/run/phaul/images/{move.id}").exists()
            wait_until(lambda: bool(status_of(stage.b, move.id)["loading"]), "the new agent does not know of it")
        wait_loaded(stage.b, move.id)
        wait_until(lambda: status_of(stage.b, move.id)["outcome"] == "completed", "it is not settled")
        check_whole(stage, pid, client, content, move)


def test_the_twin_goes_on_where_the_loader_was_killed(stage: Stage) -> None:
    with large_server(stage) as (pid, client, content):
        with SlowLoader(stage.b) as slow:
            move = stage.move(pid, stage.a, stage.ip4)
            loader, twin = slow.wait_at_work()
            stage.b.kill(loader)
            wait_until(lambda: loaders_on(stage.b)[:1] == [twin], "the twin has not taken over")
        wait_loaded(stage.b, move.id)
        check_whole(stage, pid, client, content, move)


def test_a_workload_whose_pages_are_lost_is_ended_and_said_to_be(stage: Stage) -> None:
    """Both loaders are killed: it would go on with zeros for its memory."""
    stage.before[stage.b].pop(OF_AN_AGENT)  # the first migration to a host leaves some of gRPC's
    with large_server(stage) as (pid, _, _), SlowLoader(stage.b) as slow:
        move = stage.move(pid, stage.a, stage.ip4)
        for each in reversed(slow.wait_at_work()):
            stage.b.kill(each)
        wait_until(lambda: status_of(stage.b, move.id)["outcome"] == LOST, "nobody has noticed")
        shown = phaul(stage.b, "status", move.id).stdout
        images = f"/run/phaul/images/{move.id}"
        assert images in shown.replace("\n", "").replace(" ", ""), shown
        assert stage.b.path(f"{images}/inventory.img").exists()
        assert not stage.b.running(pid)
        stage.b.exec(["umount", images])
        stage.b.exec(["rmdir", images])


def test_without_its_loader_the_copy_is_restored_eagerly(stage: Stage) -> None:
    with large_server(stage) as (pid, client, content):
        with Move(stage.a, pid, "b", stage.ip4) as move:
            deadline = time.monotonic() + 10
            while not (loaders := loaders_on(stage.b)) and time.monotonic() < deadline:
                time.sleep(0.002)
            stage.b.kill(loaders[0])
            move.wait()
        assert move.status == 0, move.told()
        assert loaded_bytes(stage.b, move) == 0
        check_whole(stage, pid, client, content, move)
