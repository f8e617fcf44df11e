"""What only a machine with its own kernel and systemd shows: notes of writes (soft-dirty), and quotas by cgroup v2."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from phaul.lab.cluster import Lab
from phaul.lab.host import Host
from phaul.units import MIB
from tests.lab.witness import PROGRAMS

GUEST_PYTHON = "/opt/phaul/venv/bin/python"
WRITER = f"{PROGRAMS}/writer.py"
NEAR = 0.3  # the machines are emulated, by processors that others use as well
WAIT_SECONDS = 60.0

MEASURE = """
import asyncio, dataclasses, json, sys
from phaul.migration.dirty_rate import DirtyMethod
from phaul.workloads.dirty_rate import measure
method = DirtyMethod(sys.argv[3]) if sys.argv[3:] else None
found = asyncio.run(measure(int(sys.argv[1]), float(sys.argv[2]), method=method))
print(json.dumps(dataclasses.asdict(found) | {"rate": found.dirty_bytes_per_second}))
"""

QUOTA = """
import asyncio, json, sys, time
from phaul.system.cpu_quota import CpuQuota, cpu_seconds

async def main():
    act, quota = sys.argv[1], CpuQuota()
    if act == "look":
        return await quota.look(int(sys.argv[2]))
    before = json.loads(sys.argv[2])
    if act == "slow":
        await quota.slow_to(before, int(sys.argv[3]))
        began, used = time.monotonic(), cpu_seconds(before["root_pid"])
        await asyncio.sleep(3)
        return (cpu_seconds(before["root_pid"]) - used) / (time.monotonic() - began)
    return await quota.put_back(before)

print(json.dumps(asyncio.run(main())))
"""


@pytest.fixture(scope="module")
def guest(machines: Lab) -> Host:
    """One of the machines, with the scripts of this module."""
    host = machines.host("a")
    for path, text in (("/root/measure.py", MEASURE), ("/root/quota.py", QUOTA)):
        host.path(path).write_text(text)
    return host


def service(guest: Host, unit: str, *argv: str) -> int:
    """Start a unit; give the PID of its main process."""
    guest.exec(["systemd-run", "--unit", unit, *argv])
    return int(guest.exec(["systemctl", "show", "--property", "MainPID", "--value", unit]).stdout)


def call(guest: Host, script: str, *arguments: str) -> Any:
    return json.loads(guest.exec([GUEST_PYTHON, f"/root/{script}.py", *arguments], timeout_seconds=120).stdout)


@pytest.fixture
def writer(guest: Host) -> Iterator[int]:
    """A unit that writes 2 MiB a second over 32 MiB."""
    pid = service(guest, "writer", "--property", "StandardOutput=file:/root/ready", "python3", WRITER, "32", "2")
    deadline = time.monotonic() + WAIT_SECONDS
    while "ready" not in guest.exec(["sh", "-c", "cat /root/ready 2>/dev/null || true"]).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield pid
    guest.exec(["systemctl", "stop", "writer"])
    guest.exec(["rm", "-f", "/root/ready"])


@pytest.fixture
def burner(guest: Host) -> Iterator[int]:
    """A unit that takes all the CPU time it gets."""
    yield service(guest, "burner", "python3", "-c", "while True: pass")
    guest.exec(["systemctl", "stop", "burner"])


def test_the_kernel_s_notes_give_the_rate_exactly(guest: Host, writer: int) -> None:
    found = call(guest, "measure", str(writer), "4")
    assert found["method"] == "soft_dirty"
    assert found["uncertainty_bytes"] == 0
    assert found["rate"] == pytest.approx(2 * MIB, rel=NEAR)
    assert found["mappings"][0]["kind"] == "anonymous"
    dirty = [point["dirty_bytes"] for point in found["curve"]]
    assert dirty == sorted(dirty)


def test_a_sample_says_the_same_as_the_kernel(guest: Host, writer: int) -> None:
    exact = call(guest, "measure", str(writer), "4", "soft_dirty")
    estimate = call(guest, "measure", str(writer), "4", "sampling")
    assert estimate["method"] == "sampling"
    assert estimate["rate"] == pytest.approx(exact["rate"], rel=NEAR)


def test_a_service_is_slowed_in_its_own_group(guest: Host, burner: int) -> None:
    before = call(guest, "quota", "look", str(burner))
    group = "/sys/fs/cgroup/system.slice/burner.service"
    assert (before["version"], before["group"], before["home"]) == (2, group, "")
    assert call(guest, "quota", "slow", json.dumps(before), "20") < before["cpus"] * 0.35
    assert guest.exec(["cat", f"{group}/cpu.max"]).stdout.split()[0] != "max"
    assert call(guest, "quota", "put back", json.dumps(before)) == []
    left = guest.exec(["sh", "-c", f"cat {group}/cpu.max 2>/dev/null || true"]).stdout
    assert left.split()[:1] in ([], ["max"])


def test_a_quota_of_the_service_s_own_comes_back(guest: Host) -> None:
    pid = service(guest, "limited", "--property", "CPUQuota=50%", "python3", "-c", "while True: pass")
    group = "/sys/fs/cgroup/system.slice/limited.service"
    try:
        own = guest.exec(["cat", f"{group}/cpu.max"]).stdout
        assert own.split()[0] == "50000"
        before = call(guest, "quota", "look", str(pid))
        assert before["cpus"] < 0.65
        assert call(guest, "quota", "slow", json.dumps(before), "20") < 0.2
        assert guest.exec(["cat", f"{group}/cpu.max"]).stdout != own
        assert call(guest, "quota", "put back", json.dumps(before)) == []
        assert guest.exec(["cat", f"{group}/cpu.max"]).stdout == own
    finally:
        guest.exec(["systemctl", "stop", "limited"])


def test_a_process_beside_others_is_slowed_alone(guest: Host) -> None:
    """The unit's group holds a shell, a sleeper and the workload: a group is made beside it, and is gone afterwards."""
    shell = service(guest, "shared", "sh", "-c", "python3 -c 'while True: pass' & sleep 1000")
    try:
        pid = int(guest.exec(["sh", "-c", f"sleep 1; pgrep -P {shell} python3"]).stdout)
        home = guest.exec(["cat", f"/proc/{pid}/cgroup"]).stdout
        before = call(guest, "quota", "look", str(pid))
        assert before["group"] == f"/sys/fs/cgroup/system.slice/phaul-throttle-{pid}"
        assert call(guest, "quota", "slow", json.dumps(before), "20") < before["cpus"] * 0.35
        assert f"phaul-throttle-{pid}" in guest.exec(["cat", f"/proc/{pid}/cgroup"]).stdout
        assert guest.exec(["cat", f"/proc/{shell}/cgroup"]).stdout == home
        for _ in range(2):
            assert call(guest, "quota", "put back", json.dumps(before)) == []
        assert guest.exec(["cat", f"/proc/{pid}/cgroup"]).stdout == home
        assert not guest.exec(
            ["sh", "-c", "ls -d /sys/fs/cgroup/system.slice/phaul-throttle-* 2>/dev/null || true"]
        ).stdout
    finally:
        guest.exec(["systemctl", "stop", "shared"])
