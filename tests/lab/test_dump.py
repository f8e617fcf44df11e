"""`phaul dump` and `phaul restore` with real CRIU: seen by clients, and by the witness of each workload's ticks."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from phaul.lab.host import Host
from phaul.lab.records import child_of

from .boxes import Box, on_bridges
from .clients import Lines, Numbering
from .moves import phaul
from .stage import SOCKETS, Stage
from .test_new_identity import NAME, identity, serve
from .test_new_identity import PORT as OWN_PORT
from .wire import Capture
from .witness import wait_until

PORT = 7804
CLONES = itertools.count(60)  # numbers in addresses and MACs that nobody else has
SHARED = "/srv/shared"


@dataclass(frozen=True)
class Told:
    """What a command printed as JSON, and its exit status."""

    status: int
    lines: tuple[dict[str, Any], ...]
    complaint: str

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]

    @property
    def warnings(self) -> list[str]:
        return [each["message"] for each in self.lines if each["event"] == "warning"]


def run(host: Host, *words: str) -> Told:
    ended = phaul(host, *words, "--json")
    lines = tuple(json.loads(line) for line in ended.stdout.splitlines())
    return Told(ended.returncode, lines, ended.stderr)


def dump(host: Host, pid: int, directory: str, *options: str) -> Told:
    told = run(host, "dump", str(pid), "--to", directory, *options)
    assert told.status == 0, told
    return told


def restore(host: Host, directory: str, *options: str) -> Told:
    told = run(host, "restore", directory, *options)
    assert told.status == 0, told
    return told


def errors(client: Numbering) -> list[str]:
    return [account.error for account in client.report()]


@contextmanager
def frozen(stage: Stage, pid: int, path: str, *options: str) -> Iterator[tuple[Lines, int]]:
    """A dump in whose middle one is; gives its output from here on, and its PID."""
    process = stage.a.popen(["phaul", "dump", str(pid), "--to", path, "--json", *options])
    lines, command = Lines(process), 0
    try:
        phase = ""
        while phase != "freeze":
            phase = json.loads(lines.next() or "").get("phase")
        command = child_of(process.pid) or 0
        yield lines, command
    finally:
        if process.poll() is None and child_of(process.pid) == command:
            os.kill(command, signal.SIGKILL)  # it would hold the pipes
        lines.close()


@contextmanager
def directory(stage: Stage, name: str) -> Iterator[str]:
    """A place for a dump that both hosts see, and nothing is left of."""
    path = f"{SHARED}/{name}"
    try:
        yield path
    finally:
        stage.a.exec(["rm", "-rf", path])


def test_a_workload_is_ended_and_starts_again_where_it_stood(stage: Stage) -> None:
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT), "--memory", "80")
    with directory(stage, "once") as path:
        with Numbering(stage.client, (address, PORT)) as client:
            stage.wait_exchange(client)
            told = dump(stage.a, pid, path)
            assert any("1 TCP connection will end with the workload" in each for each in told.warnings), told.warnings
            assert errors(client)[0] in ("EOF", "ECONNRESET", "EPIPE"), errors(client)
        stage.a.wait_ended(pid, 5)
        assert stage.a.exec(["stat", "-c", "%a %U", path]).stdout == "700 root\n"
        work = stage.work_done(pid)
        told = restore(stage.a, path)
        assert told.last["pid"] == pid
        stage.wait_work(pid, work)
        with Numbering(stage.client, (address, PORT)) as client:
            stage.wait_exchange(client)
            assert errors(client) == [""]


def test_a_tree_goes_on_elsewhere_without_a_tick_lost_or_doubled(stage: Stage) -> None:
    pid = stage.start("tree", "2", SOCKETS)  # with more, a TCP connection is among what binds them
    family = stage.descendants(stage.a, pid)
    with directory(stage, "tree") as path:
        dump(stage.a, pid, path)
        stage.a.wait_ended(pid, 5)
        told = restore(stage.b, path)
        assert told.last["pid"] == pid
        assert stage.descendants(stage.b, pid) == family
        stage.check_ticks(pid, stage.a, stage.b)


def test_a_clone_runs_on_another_host_beside_the_original(stage: Stage) -> None:
    pid = stage.start("server", "--listen", stage.a.ip4, str(PORT))
    with directory(stage, "clone") as path, Numbering(stage.client, (stage.a.ip4, PORT)) as client:
        stage.wait_exchange(client)
        told = dump(stage.a, pid, path, "--leave-running")
        assert any("1 TCP connection will not be in the dump" in each for each in told.warnings), told.warnings
        stage.wait_exchange(client)
        again = run(stage.a, "restore", path)
        assert (again.status, again.last["error"]["where"]) == (15, "dumped")
        assert "in use" in again.last["error"]["message"]
        homeless = run(stage.b, "restore", path)
        assert f"uses the address {stage.a.ip4}" in homeless.last["error"]["message"], homeless
        assert "--new-address" in homeless.last["error"]["hint"]
        told = restore(stage.b, path, "--new-address", f"{stage.a.ip4}={stage.b.ip4}")
        assert told.last["pid"] == pid
        with Numbering(stage.client, (stage.b.ip4, PORT)) as other:
            stage.wait_exchange(other)
            stage.wait_exchange(client)
            assert (errors(client), errors(other)) == ([""], [""])
        assert stage.a.running(pid)
        assert stage.b.running(pid)
        stage.witness.wait_ticks(pid, 40, sender=stage.b.ip4)


@pytest.mark.parametrize("kind", ["veth", "macvlan"])
def test_a_network_of_its_own_comes_back_on_the_same_host(stage: Stage, kind: str) -> None:
    on_bridges(stage)
    with Box(stage, kind) as box, directory(stage, f"own-{kind}") as path:
        pid = box.serve(PORT)
        with Numbering(stage.client, (box.ip4, PORT), (box.ip6, PORT)) as client:
            stage.wait_exchange(client)
            dump(stage.a, pid, path, "--leave-running")
            stage.wait_exchange(client)
            taken = run(stage.b, "restore", path)
            assert "is claimed by" in taken.last["error"]["message"], taken
            stage.a.exec(["rm", "-rf", path])
            dump(stage.a, pid, path)
            assert set(errors(client)) <= {"EOF", "ECONNRESET", "EPIPE"}, errors(client)
        stage.a.wait_ended(pid, 5)
        assert box.name not in stage.a.exec(["ip", "netns", "list"]).stdout
        restore(stage.a, path)
        with Numbering(stage.client, (box.ip4, PORT), (box.ip6, PORT)) as client:
            stage.wait_exchange(client)
            assert errors(client) == ["", ""]


@pytest.mark.parametrize("kind", ["veth", "macvlan"])
def test_a_clone_with_an_identity_of_its_own_stands_beside_the_original(stage: Stage, kind: str) -> None:
    on_bridges(stage)
    number = next(CLONES)
    ip4, ip6, mac = f"10.77.0.{number}", f"fd00:77::c{number}", f"02:00:00:98:00:{number:02x}"
    with Box(stage, kind) as box, directory(stage, f"clone-{kind}") as path:
        pid = serve(stage, box)
        with Numbering(stage.client, (box.ip4, OWN_PORT), (box.ip6, OWN_PORT)) as client:
            stage.wait_exchange(client)
            dump(stage.a, pid, path, "--leave-running")
            addresses = ["--new-address", f"{box.ip4}={ip4}", "--new-address", f"{box.ip6}={ip6}"]
            taken = run(stage.b, "restore", path, *addresses, "--hostname", "clone")
            assert f"The MAC {box.mac}" in taken.last["error"]["message"], taken
            restore(stage.b, path, *addresses, "--hostname", "clone", "--new-mac", mac)
            with Capture(stage.client, box.ip4, ip4) as capture:
                with Numbering(stage.client, (ip4, OWN_PORT), (ip6, OWN_PORT)) as other:
                    stage.wait_exchange(other)
                    stage.wait_exchange(client)
                    assert errors(other) == ["", ""]
                assert errors(client) == ["", ""]
                resets = [each for each in capture.resets() if each.split()[1] != stage.client.ip4]  # it hangs up
                assert (resets, capture.rivals()) == ([], [])
        assert identity(stage.a, box, pid) == (box.mac, NAME)
        assert identity(stage.b, box, pid) == (mac, "clone")
        known = {line.split()[0]: line.split() for line in stage.client.exec(["ip", "neigh"]).stdout.splitlines()}
        assert box.mac in known[box.ip4]
        assert mac in known[ip4]


def test_ctrl_c_leaves_the_workload_and_no_dump(stage: Stage) -> None:
    pid = stage.start("server", "--memory", "300")
    with directory(stage, "cancelled") as path, frozen(stage, pid, path) as (lines, command):
        os.kill(command, signal.SIGINT)
        last = ""
        while line := lines.next():
            last = line
        error = json.loads(last)["error"]
        assert (error["code"], error["where"]) == ("CancelledByUserError", "source")
        assert not stage.a.path(path).exists()
        stage.check_ticks(pid, stage.a)


@pytest.mark.parametrize("options", [(), ("--leave-running",)], ids=["ended", "left"])
def test_an_agent_that_is_killed_leaves_the_workload_and_no_dump(stage: Stage, options: Sequence[str]) -> None:
    pid = stage.start("server", "--memory", "300")
    with directory(stage, "killed") as path:
        with frozen(stage, pid, path, *options):
            stage.a.kill_agent()
        assert stage.a.path(path).exists()
        stage.a.start_agent()
        wait_until(lambda: not stage.a.path(path).exists(), "the half-made dump is still there")
        stage.check_ticks(pid, stage.a)


def test_a_workload_that_stands_still_for_too_long_goes_on(stage: Stage) -> None:
    pid = stage.start("server", "--memory", "200")
    with directory(stage, "slow") as path:
        told = run(stage.a, "dump", str(pid), "--to", path, "--freeze-timeout", "20ms")
        assert told.last["error"]["code"] == "DeadlineError", told
        assert not stage.a.path(path).exists()
        stage.check_ticks(pid, stage.a)
