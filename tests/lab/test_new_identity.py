"""`--new-mac` and `--hostname`: the copy has another MAC and another name, and its clients notice neither."""

from __future__ import annotations

import itertools
import time

import pytest

from phaul.lab.cluster import Lab
from phaul.lab.host import Host

from .boxes import Box, on_bridges
from .clients import Numbering
from .hooking import noted, put
from .moves import Move, migrate
from .stage import Stage
from .test_own_network import dying_at
from .wire import Capture
from .witness import wait_until

PORT = 5000
NAME, NEW_NAME = "before", "after.example"
NEW_MACS = (f"02:00:00:99:00:{number:02x}" for number in itertools.count(1))  # each is heard on the network
LONGEST_GAP_SECONDS = 3.0


@pytest.fixture
def stage(stage: Stage) -> Stage:
    """The lab for one test, its hosts' devices on bridges."""
    on_bridges(stage)
    return stage


def change(mac: str) -> list[str]:
    return ["--new-mac", mac, "--hostname", NEW_NAME]


def serve(stage: Stage, box: Box) -> int:
    """Start a server that has a host name of its own, beside the network of its box."""
    listen = f"--listen 0.0.0.0 {PORT} --listen :: {PORT}"
    server = f"hostname {NAME}; exec python3 -m witness.server {stage.client.ip4} 7000 {listen}"
    pid = box.spawn("unshare", "--uts", "sh", "-c", server)
    stage.witness.wait_ticks(pid)
    return pid


def identity(host: Host, box: Box, pid: int) -> tuple[str, str]:
    """The MAC of its device and its host name, as the kernel has them."""
    mac = box.shown(host, "-br", "link", "show", "dev", "eth0").split()[2]
    return mac, host.exec(["nsenter", f"--uts=/proc/{pid}/ns/uts", "hostname"]).stdout.strip()


def neighbours(stage: Stage, box: Box) -> set[str]:
    """The MACs by which the client knows the addresses of a box."""
    shown = stage.client.exec(["ip", "neigh", "show"]).stdout.splitlines()
    words = [line.split() for line in shown if line.split()[0] in (box.ip4, box.ip6) and "lladdr" in line]
    return {each[each.index("lladdr") + 1] for each in words}


@pytest.mark.parametrize("kind", ["veth", "macvlan"])
def test_connections_outlive_a_new_mac_and_name(stage: Stage, kind: str) -> None:
    mac = next(NEW_MACS)
    with Box(stage, kind) as box, noted((stage.a, stage.b), ()):
        pid = serve(stage, box)
        with (
            Capture(stage.client, box.ip4, box.ip6) as capture,
            Numbering(stage.client, (box.ip4, PORT), (box.ip6, PORT)) as client,
        ):
            stage.wait_exchange(client)
            failing = put(stage.b, "post-restore", "fail", "#!/bin/sh\nexit 1\n")
            move = migrate(stage.a, pid, "b", options=change(mac))
            assert move.error["code"] == "HookError", move.told()
            stage.wait_exchange(client)
            assert identity(stage.a, box, pid) == (box.mac, NAME)
            stage.b.path(failing).unlink()
            move = migrate(stage.a, pid, "b", options=change(mac))
            assert move.report["new_pid"] == pid
            stage.wait_exchange(client)
            assert identity(stage.b, box, pid) == (mac, NEW_NAME)
            assert neighbours(stage, box) == {mac}
            assert stage.b.exec(["hostname"]).stdout.strip() != NEW_NAME
            assert capture.resets() == []
            for account in client.finish():
                account.check(move.phase_at("freeze"), move.ended, finished=True)
                assert account.longest_gap(move.began) < LONGEST_GAP_SECONDS


def test_a_copy_that_is_made_again_has_it_too(lab: Lab) -> None:
    """The destination's agent dies as it lets the copy run; the next one restores it from the images."""
    mac = next(NEW_MACS)
    with dying_at(lab, "b", "destination.resume") as stage, Box(stage) as box:
        pid = serve(stage, box)
        with Numbering(stage.client, (box.ip4, PORT)) as client:
            stage.wait_exchange(client)
            with Move(stage.a, pid, "b", options=change(mac)) as move:
                move.wait_phase("freeze")
                wait_until(lambda: stage.b.agent_pid is None, "the agent of b does not die")
                stage.b.launch_agent()
                stage.b.wait_agent()
            back = time.monotonic()
            stage.wait_exchange(client)
            assert identity(stage.b, box, pid) == (mac, NEW_NAME)
            for account in client.finish():
                account.check(move.phase_at("freeze"), back, finished=True)


def test_what_cannot_be_had_is_refused(stage: Stage) -> None:
    mac = next(NEW_MACS)
    with Box(stage) as box:
        pid = serve(stage, box)
        stage.client.exec(["ping", "-c", "1", stage.b.ip4])
        (client_mac,) = stage.client.exec(["cat", "/sys/class/net/eth0/address"]).stdout.split()
        for option, why in (
            (["--new-mac", client_mac], f"The MAC {client_mac} is in use already"),
            (["--new-mac", f"eth7={mac}"], "no network device eth7"),
        ):
            move = migrate(stage.a, pid, "b", options=option)
            assert move.error["code"] == "PreflightError", move.told()
            assert why in move.error["message"]
        for option in (["--new-mac", "01:00:5e:00:00:01"], ["--hostname", "no_name"]):
            assert migrate(stage.a, pid, "b", options=option).status == 2
        assert identity(stage.a, box, pid) == (box.mac, NAME)
    plain = stage.start("ticker")
    move = migrate(stage.a, plain, "b", options=change(mac))
    assert "no host name of its own" in move.error["detail"], move.told()
    assert "in the network of its host" in move.error["detail"]
    stage.check_undisturbed(plain, since=0)
