"""Pre-copy on a kernel that tracks writes: rounds, the downtime contract, and every way out of it, with real CRIU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from phaul.lab.cluster import Lab
from phaul.lab.vm_host import VirtualHost
from tests.lab.clients import RedisLoad
from tests.lab.moves import Move
from tests.lab.witness import PROGRAMS, Witness, wait_until

from .machines import PATIENCE_SECONDS, Workload, control_group

ADDRESS = "10.77.0.191"
REDIS_PORT = 6379
VALUES, VALUE_BYTES = 60_000, 1000  # some 72 MiB as Redis keeps them: enough for a lazy restore
WRITER_MIB = 96
WRITER = [f"{PROGRAMS}/writer.py", str(WRITER_MIB)]


@contextmanager
def address(machines: Lab) -> Iterator[None]:
    """An address on the first machine that the workload may take along."""
    machines.machines[0].exec(["ip", "address", "add", f"{ADDRESS}/24", "dev", "eth0"])
    try:
        yield
    finally:
        for host in machines.machines:
            host.exec(["ip", "address", "del", f"{ADDRESS}/24", "dev", "eth0"], check=False)


def rounds(move: Move) -> list[dict[str, Any]]:
    return [event for event in move.events if event["event"] == "round_finished"]


@pytest.fixture
def writer(machines: Lab) -> Iterator[int]:
    """A program that writes faster than an emulated machine can send, in a control group of its own."""
    host = machines.machines[0]
    unit = "fast-writer"
    log = ["--property=StandardOutput=append:/var/log/workload.log", "--property=StandardError=inherit"]
    command = ["systemd-run", f"--unit={unit}", *log, "python3", *WRITER, "400"]
    host.exec(command)
    pid = int(host.systemctl("show", "--property=MainPID", "--value", unit))
    wait_until(lambda: resident_mib(host, pid) >= WRITER_MIB, "the writer does not fill its memory", PATIENCE_SECONDS)
    yield pid
    for each in machines.machines:
        if each.running(pid):
            each.kill(pid)
            each.wait_ended(pid, PATIENCE_SECONDS)
    host.systemctl("reset-failed", check=False)


def resident_mib(host: VirtualHost, pid: int) -> int:
    (line,) = (line for line in host.path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def quota(host: VirtualHost, pid: int) -> str:
    path = host.path(f"/sys/fs/cgroup{control_group(host, pid)}/cpu.max")
    return path.read_text().strip() if path.exists() else "max 100000"


def test_a_redis_under_load_goes_in_rounds(machines: Lab, witness: Witness) -> None:
    a, b = machines.machines
    options = [
        "--bind",
        ADDRESS,
        "--port",
        str(REDIS_PORT),
        "--save",
        "",
        "--enable-debug-command",
        "yes",
        "--protected-mode",
        "no",
    ]
    with address(machines), Workload(machines, witness, a, "ticking_redis", *options) as workload:
        client = ["redis-cli", "-h", ADDRESS]
        wait_until(
            lambda: machines.client.exec([*client, "ping"], check=False).stdout == "PONG\n",
            "Redis does not answer",
            PATIENCE_SECONDS,
        )
        populate = ["debug", "populate", str(VALUES), "value", str(VALUE_BYTES)]
        machines.client.exec([*client, *populate], timeout_seconds=PATIENCE_SECONDS)
        with RedisLoad(machines.client, ADDRESS, REDIS_PORT) as load:
            load.wait_more(50)
            with Move(a, workload.pid, b.name, f"{ADDRESS}/24", options=["--on-stall", "freeze"]) as move:
                assert move.wait().status == 0, move.told()
            load.wait_more(20)
            account = load.finish()
            assert (account.error, account.lost) == ("", 0)
        workload.check(a, b)
        assert move.report["mode"] == "pre_copy"
        assert move.report["rounds"] == len(rounds(move)) >= 2
        first, *_, last = rounds(move)
        assert first["page_bytes"] > VALUES * VALUE_BYTES
        final_bytes = move.report["sent_bytes"] - sum(each["page_bytes"] for each in rounds(move))
        assert final_bytes < 0.2 * first["page_bytes"]
        assert last["predicted_downtime_us"] == move.report["predicted_downtime_us"] > 0
        loading = b.path(f"/var/lib/phaul/migrations/{move.id}/loading")
        wait_until(lambda: loading.read_text().split()[0] == "done", "its pages are not loaded", PATIENCE_SECONDS)
        assert int(loading.read_text().split()[2]) > VALUES * VALUE_BYTES / 2, "of all rounds, not of the last alone"
        images = b.path("/run/phaul/images")
        wait_until(lambda: not list(images.iterdir()), "the images are kept", PATIENCE_SECONDS)


def test_what_writes_too_fast_stays_unharmed(machines: Lab, writer: int) -> None:
    a, b = machines.machines
    before = quota(a, writer)
    with Move(a, writer, b.name, options=["--max-downtime", "300ms", "--timeout", "90s"]) as move:
        assert move.wait().status == 26, move.told()
    assert "would stand still for about" in move.error["message"]
    assert "--max-downtime" in move.error["hint"]
    assert not any(event["event"] == "phase_started" and event["phase"] == "freeze" for event in move.events)
    assert (a.running(writer), b.running(writer)) == (True, False)
    assert quota(a, writer) == before


def test_a_throttled_workload_has_its_quota_back(machines: Lab, writer: int) -> None:
    a, b = machines.machines
    before = quota(a, writer)
    slow = ["--max-downtime", "20s", "--on-stall", "throttle", "--max-rounds", "12"]
    with Move(a, writer, b.name, options=slow) as move:
        assert move.wait().status in (0, 26), move.told()
    stays = move.status == 26
    assert (a.running(writer), b.running(writer)) == (stays, not stays)
    assert quota(a if stays else b, writer) == before


def test_the_longer_pause_can_be_accepted(machines: Lab, writer: int) -> None:
    a, b = machines.machines
    with Move(a, writer, b.name, options=["--max-downtime", "300ms", "--on-stall", "freeze"]) as move:
        assert move.wait().status == 0, move.told()
    assert move.report["mode"] == "pre_copy"
    assert (a.running(writer), b.running(writer)) == (False, True)


@pytest.mark.parametrize("whose", ["source", "destination"])
def test_an_agent_that_dies_in_a_round_leaves_the_workload_running(machines: Lab, writer: int, whose: str) -> None:
    a, b = machines.machines
    before = quota(a, writer)
    victim = a if whose == "source" else b
    with Move(a, writer, b.name, options=["--max-downtime", "300ms", "--max-rounds", "1000"]) as move:
        move.wait_phase("precopy")
        victim.systemctl("kill", "--signal=KILL", "phaul-agent.service")
        move.wait()
    assert move.status != 0
    wait_until(
        lambda: victim.systemctl("is-active", "phaul-agent.service", check=False) == "active",
        "the agent does not come back",
        PATIENCE_SECONDS,
    )
    assert (a.running(writer), b.running(writer)) == (True, False)
    assert a.path(f"/proc/{writer}/stat").read_text().rpartition(")")[2].split()[0] in "RS"
    assert quota(a, writer) == before
