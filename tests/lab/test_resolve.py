"""A link that is cut for good after COMMIT, with real CRIU: a person decides on the destination, and then it heals."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from phaul.lab.cluster import Lab
from phaul.lab.host import Host

from .clients import Numbering
from .faults.injection import wait_stopped
from .faults.link import Link
from .moves import Move, phaul
from .stage import Stage
from .witness import wait_until

PORT = 5000
MIB = 64
IN_DOUBT_STATUS = 40
SETTLED_SECONDS = 60.0  # the calls of both sides have deadlines of up to half a minute, and TCP backs off as well
QUIET_SECONDS = 1.0


@pytest.fixture
def stage(lab: Lab) -> Iterator[Stage]:
    """The agent of a stops itself when its tree is dead and nobody has been told so."""
    source = lab.host("a")
    source.kill_agent(signal.SIGTERM)
    source.launch_agent(env={"PHAUL_FAULT": "source.resume:stop"})
    source.wait_agent()
    with Stage(lab) as set_up:
        # gRPC 1.85 leaves a connection open that it was still trying for when its channel was closed: seen with `ss`.
        for before in set_up.before.values():
            before.pop("descriptors of the agent")
        yield set_up


@pytest.fixture
def link(lab: Lab, stage: Stage) -> Iterator[Link]:
    link = Link(lab)
    yield link
    link.heal()


def resolve(host: Host, migration_id: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Run `phaul resolve --json`; give its exit status and what it printed."""
    done = phaul(host, "resolve", migration_id, "--json", *options)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def outcome(host: Host, migration_id: str) -> str:
    (summary,) = map(json.loads, phaul(host, "status", migration_id, "--json").stdout.splitlines())
    return str(summary["outcome"])


def test_a_copy_without_its_source_runs_by_decision(stage: Stage, link: Link) -> None:
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT), "--memory", str(MIB))
    with Numbering(stage.client, (address, PORT)) as client:
        stage.wait_exchange(client)
        with Move(stage.a, pid, "b", stage.ip4) as move:
            migration_id = move.id
            wait_stopped(stage.a, lambda: not move.over)
            link.cut()
            agent = stage.a.agent_pid
            assert agent is not None
            stage.a.kill(agent, signal.SIGCONT)
            wait_until(lambda: not stage.a.running(pid), "the tree was not killed")  # CRIU keeps the zombie

            # Nobody decides for a person, and nothing runs.
            status, (doubt,) = resolve(stage.b, migration_id)
            assert status == IN_DOUBT_STATUS
            assert (doubt["tree"], doubt["images_complete"], doubt["other"]) == ("held", True, "no_answer")
            assert [option["safety"] for option in doubt["options"]] == ["unsafe", "unsafe"]
            refused, (_, error) = resolve(stage.b, migration_id, "--resume-here")
            assert (refused, error["error"]["code"]) == (2, "UsageError")
            status, (doubt,) = resolve(stage.a, migration_id)
            assert status == IN_DOUBT_STATUS
            assert (doubt["tree"], doubt["other"]) == ("dead", "no_answer")
            assert [option["safety"] for option in doubt["options"]] == ["impossible", "unsafe"]
            assert outcome(stage.a, migration_id) == "in_doubt"
            assert f"phaul resolve {migration_id}" in phaul(stage.a, "status").stdout
            silent_since = time.monotonic() - QUIET_SECONDS
            assert not stage.witness.ticks(pid, since=silent_since), "it runs although nobody has decided"

            status, (_, resolved) = resolve(stage.b, migration_id, "--resume-here", "--yes")
            assert (status, resolved["outcome"]) == (0, "completed")
            stage.witness.wait_ticks(pid, sender=stage.b.ip4)
            stage.wait_exchange(client)
            assert outcome(stage.b, migration_id) == "completed"

            # The source cannot know yet. When it can, it only tidies up.
            assert outcome(stage.a, migration_id) == "in_doubt"
            link.heal()
            wait_until(lambda: move.over, "the source does not hear that it runs", SETTLED_SECONDS)
            move.wait()
        assert move.status == 0, move.told()
        assert outcome(stage.a, migration_id) == "completed"
        stage.wait_exchange(client)
        (account,) = client.finish()
        account.check(move.phase_at("freeze"), move.ended, finished=True)
    assert not stage.has_address(stage.a, stage.ip4)
    assert stage.has_address(stage.b, stage.ip4)
    assert not stage.a.running(pid)
    stage.check_ticks(pid, stage.a, stage.b)
