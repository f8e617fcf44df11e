"""`--new-address` for a network namespace of its own: the copy is at other addresses, and every client is told so."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from phaul.lab.cluster import Lab
from phaul.lab.host import Host
from phaul.network.link_fence import nobodys_mac

from .boxes import Box, on_bridges
from .clients import Client, Numbering
from .hooking import noted, put
from .moves import Move, migrate
from .stage import DEVICE, Stage
from .test_datagrams import Datagrams, wait_heard
from .test_own_network import check_ticks, dying_at
from .wire import Capture
from .witness import wait_until

PORT, OWN_PORT, UDP_PORT = 5000, 5001, 5002
NUMBERS = itertools.count(10)
# Where the client is in the networks of the new addresses.
CLIENT4, CLIENT6 = "10.77.1.3", "fd00:79::3"
NEW_MAC, NEW_NAME = "02:00:00:98:00:{:02x}", "after.example"
TOLD_SECONDS = 10.0  # for a client to hear that its connection is over


@pytest.fixture
def stage(stage: Stage) -> Iterator[Stage]:
    """The lab for one test, its hosts' devices on bridges, the client in the new networks as well."""
    on_bridges(stage)
    with _in_new_networks(stage.client):
        yield stage


@contextmanager
def _in_new_networks(client: Host) -> Iterator[None]:
    places = (f"{CLIENT4}/24", f"{CLIENT6}/64")
    for place in places:
        client.exec(["ip", "address", "add", place, "dev", DEVICE, *(["nodad"] if ":" in place else [])])
    try:
        yield
    finally:
        for place in places:
            client.exec(["ip", "address", "del", place, "dev", DEVICE])


class Waiting(Client):
    """Connections on which nobody says anything, and what ended them."""

    def __init__(self, client: Host, *places: tuple[str, int]) -> None:
        words = [word for address, port in places for word in (address, str(port))]
        super().__init__(client, ["waiting", *words], "connected")

    def ends(self) -> list[str]:
        """What ended each; "" for one that is there."""
        return [end for end, _ in self.ask("report")]

    def check_told(self, since: float) -> None:
        """Every one comes to an end, and soon after a moment."""
        wait_until(lambda: all(self.ends()), "a client was not told")
        assert set(self.ends()) <= {"EOF", "ECONNRESET"}
        assert all(at - since < TOLD_SECONDS for _, at in self.ask("report"))


class Change:
    """The new addresses of one box, and how they are asked for."""

    def __init__(self, stage: Stage, box: Box, *, six: bool = True) -> None:
        number = next(NUMBERS)
        self.ip4, self.ip6, self.mac = f"10.77.1.{number}", f"fd00:79::{number}", NEW_MAC.format(number)
        # With the longer prefix the old gateway, and who counts the ticks, is in the new network as well.
        self.options = ["--new-address", f"{box.ip4}={self.ip4}/16"]
        if six:
            self.options += ["--new-address", f"{box.ip6}={self.ip6}"]
            self.options += ["--new-gateway", f"{stage.client.ip6}={CLIENT6}"]


def serve(stage: Stage, box: Box) -> int:
    """Start a server at all addresses and at those of the box, and one for datagrams."""
    box.shown(stage.a, "route", "add", "2001:db8:5::/48", "via", stage.client.ip6)
    box.shown(stage.a, "rule", "add", "from", box.ip4, "lookup", "main", "priority", "77")
    tentative = "-6", "address", "show", "dev", "eth0", "tentative"
    wait_until(lambda: not box.shown(stage.a, *tentative), "an address cannot be used yet")
    listen = [(where, PORT) for where in ("0.0.0.0", "::")] + [(where, OWN_PORT) for where in (box.ip4, box.ip6)]
    words = " ".join(f"--greet {where} {port}" for where, port in listen) + f" --listen 0.0.0.0 {PORT + 10}"
    udp = " ".join(f"{where} {UDP_PORT} {where} 0" for where in (box.ip4, box.ip6))
    lines = [
        "hostname before",
        f"python3 -m witness.datagrams {stage.client.ip4} 7000 {udp} &",
        f"exec python3 -m witness.server {stage.client.ip4} 7000 {words}",
    ]
    pid = box.spawn("unshare", "--uts", "sh", "-c", "\n".join(lines))
    stage.witness.wait_ticks(pid)
    return pid


def check_broken(client: Numbering) -> None:
    """Its connection is over as well."""
    wait_until(lambda: bool(client.brief()[0].error), "a client was not told")
    assert client.brief()[0].error in ("EOF", "ECONNRESET", "EPIPE")


def places(four: str, six: str) -> list[tuple[str, int]]:
    """Where the server is."""
    return [(address, port) for address in (four, six) for port in (PORT, OWN_PORT)]


def bound(box: Box, host: Host) -> set[str]:
    """What the sockets of the box are bound to."""
    found = host.exec(["nsenter", f"--net=/run/netns/{box.name}", "ss", "-Htuln"]).stdout.splitlines()
    return {line.split()[4] for line in found} - {"127.0.0.1:7001"}


def has(box: Box, host: Host) -> set[str]:
    """Its global addresses."""
    lines = box.shown(host, "-o", "address", "show", "scope", "global").splitlines()
    return {line.split()[3] for line in lines}


@pytest.mark.parametrize("kind", ["veth", "macvlan"])
def test_a_server_gets_new_addresses_and_its_clients_are_told(stage: Stage, kind: str) -> None:
    with Box(stage, kind) as box, noted((stage.a, stage.b), ()):
        pid = serve(stage, box)
        change = Change(stage, box)
        options = [*change.options, "--new-mac", change.mac, "--hostname", NEW_NAME]
        before = bound(box, stage.a), has(box, stage.a), box.shown(stage.a, "-6", "route")
        with (
            Waiting(stage.client, *places(box.ip4, box.ip6)) as waiting,
            Numbering(stage.client, (box.ip4, PORT + 10)) as client,
        ):
            stage.wait_exchange(client)
            failing = put(stage.b, "post-restore", "fail", "#!/bin/sh\nexit 1\n")
            move = migrate(stage.a, pid, "b", options=options)
            assert move.error["code"] == "HookError", move.told()
            stage.wait_exchange(client)  # a rollback keeps what would have been closed
            assert waiting.ends() == [""] * 4
            assert (bound(box, stage.a), has(box, stage.a), box.shown(stage.a, "-6", "route")) == before
            stage.b.path(failing).unlink()
            with Capture(stage.client, change.ip4, change.ip6) as capture:
                move = migrate(stage.a, pid, "b", options=options)
                assert move.report["new_pid"] == pid
                warnings = [each["message"] for each in move.events if each["event"] == "warning"]
                assert any("5 TCP connections will be closed" in each for each in warnings), warnings
                waiting.check_told(move.phase_at("commit"))
                check_broken(client)
                # The new ones are announced, the old ones not.
                new = change.ip4, change.ip6
                wait_until(lambda: all(map(capture.claimants, new)), "a new address was not announced")
                assert [capture.claimants(each) for each in new] == [{change.mac}] * 2
                assert capture.rivals() == []
                assert change.mac not in capture.claimants(box.ip4) | capture.claimants(box.ip6)
        assert has(box, stage.b) == {f"{change.ip4}/16", f"{change.ip6}/64"}
        old = {each.replace(box.ip4, change.ip4).replace(box.ip6, change.ip6) for each in before[0]}
        assert bound(box, stage.b) == old
        assert f"via {CLIENT6}" in box.shown(stage.b, "-6", "route")
        assert "10.77.0.0/16 dev eth0" in box.shown(stage.b, "route")
        assert f"from {change.ip4} lookup main" in box.shown(stage.b, "rule")
        assert change.mac in box.shown(stage.b, "link", "show", "dev", "eth0")
        assert stage.b.exec(["nsenter", f"--uts=/proc/{pid}/ns/uts", "hostname"]).stdout.strip() == NEW_NAME
        assert box.name not in stage.a.exec(["ip", "netns", "list"]).stdout
        with Waiting(stage.client, *places(change.ip4, change.ip6)) as waiting:
            flows = [word for where in (change.ip4, change.ip6) for word in (where, str(UDP_PORT), "0")]
            with Datagrams(stage.client, ["datagrams", "client", *flows], "sending") as datagrams:
                wait_heard(datagrams, 20)
            assert waiting.ends() == [""] * 4
        stage.witness.wait_ticks(pid, 40, since=move.ended, sender=change.ip4)


@pytest.mark.parametrize("kind", ["veth", "macvlan"])
def test_an_address_that_stays_has_its_clients_told_too(stage: Stage, kind: str) -> None:
    """They would be answered by nobody: CRIU keeps all connections or none, and the source is behind its fence."""
    with Box(stage, kind) as box:
        pid = serve(stage, box)
        change = Change(stage, box, six=False)
        with (
            Capture(stage.client, box.ip4) as capture,
            Waiting(stage.client, *places(box.ip4, box.ip6)) as waiting,
        ):
            move = migrate(stage.a, pid, "b", options=change.options)
            assert move.report["new_pid"] == pid
            waiting.check_told(move.phase_at("commit"))
            # The copy has the workload's MAC, so that what the source says last must not lead back to it.
            wait_until(lambda: bool(capture.goodbyes(box.ip4)), "the capture saw no end")
            assert capture.goodbyes(box.ip4) == {nobodys_mac(move.id)}
        assert has(box, stage.b) == {f"{change.ip4}/16", f"{box.ip6}/64"}
        with Waiting(stage.client, *places(change.ip4, box.ip6)) as waiting:
            time.sleep(1)
            assert waiting.ends() == [""] * 4


# Who dies at which point, and where the workload runs when all agents live again.
CRASHES = [
    ("a", "source.restore", "a"),  # the tree is frozen, the copy not there yet
    ("a", "source.resume", "b"),  # the tree is dead, the destination does not know
    ("b", "destination.resume", "b"),  # the copy may run, and is made again from the images
]


@pytest.mark.parametrize(("host", "point", "ends_on"), CRASHES, ids=[point for _, point, _ in CRASHES])
def test_no_crash_leaves_it_between_two_addresses(lab: Lab, host: str, point: str, ends_on: str) -> None:
    """It has the old ones and all connections, or the new ones and every client was told."""
    with dying_at(lab, host, point) as stage, _in_new_networks(stage.client), Box(stage) as box:
        pid = serve(stage, box)
        change = Change(stage, box)
        dying, home = lab.host(host), lab.host(ends_on)
        with (
            Waiting(stage.client, *places(box.ip4, box.ip6)) as waiting,
            Numbering(stage.client, (box.ip4, PORT + 10)) as client,
        ):
            stage.wait_exchange(client)
            with Move(stage.a, pid, "b", options=change.options) as move:
                move.wait_phase("freeze")
                wait_until(lambda: dying.agent_pid is None, f"the agent of {host} does not die")
                died = time.monotonic()
                dying.launch_agent()
                dying.wait_agent()
            if ends_on == "a":
                stage.wait_exchange(client)
                assert waiting.ends() == [""] * 4
            else:
                waiting.check_told(died)
                check_broken(client)
                stage.witness.wait_ticks(pid, 20, since=died, sender=change.ip4)
        assert [each for each in (stage.a, stage.b) if each.running(pid)] == [home]
        at = places(box.ip4, box.ip6) if ends_on == "a" else places(change.ip4, change.ip6)
        with Waiting(stage.client, *at):
            other = stage.other(home)
            wait_until(lambda: box.name in home.exec(["ip", "netns", "list"]).stdout, "it has no name")
            wanted = (f"{box.ip4}/24", f"{box.ip6}/64"), (f"{change.ip4}/16", f"{change.ip6}/64")
            assert has(box, home) == set(wanted[ends_on == "b"])
            wait_until(lambda: box.outer not in other.exec(["ip", "-br", "link"]).stdout, "its device stays behind")
            wait_until(lambda: box.name not in other.exec(["ip", "netns", "list"]).stdout, "its name stays behind")


def test_what_cannot_be_had_is_refused(stage: Stage) -> None:
    with Box(stage) as box:
        pid = box.serve(PORT)
        four, six = box.ip4, box.ip6
        for options, code in (
            (["--new-address", "10.77.0.99=10.77.0.98"], "old_address_missing"),
            (["--new-address", f"{four}={stage.b.ip4}"], "address_on_destination"),
            (["--new-address", f"{four}={stage.a.ip4}"], "new_address_taken"),
            (["--new-address", f"{six}={stage.client.ip6}"], "new_address_taken"),
            (["--new-address", f"{four}={stage.client.ip4}"], "new_address_taken"),
            (["--new-address", f"{four}=10.99.0.7"], "gateway_unreachable"),
            (["--new-address", f"{four}=10.77.1.0"], "new_address_prefix"),
            (["--new-gateway", "10.77.0.99=10.77.0.98"], "new_gateway_unused"),
        ):
            move = migrate(stage.a, pid, "b", options=options)
            assert move.error["code"] == "PreflightError", move.told()
            assert f"{code}:" in move.error["detail"], move.told()
        assert migrate(stage.a, pid, "b", options=["--new-address", f"{four}={six}"]).status == 2
        assert migrate(stage.a, pid, "b", options=["--new-gateway", "eth0"]).status == 2
        asked = [*Change(stage, box, six=False).options, "--json"]
        told = stage.a.exec(["phaul", "check", str(pid), "--to", "b", *asked]).stdout
        assert '"may_go": true' in told, told
        check_ticks(stage, box, pid)
