"""The agent as a unit: whatever is done to the unit, a workload is alive exactly once, and stays so."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from phaul.lab.cluster import Lab
from phaul.lab.recipe import SOURCE
from phaul.lab.vm_host import VirtualHost
from tests.lab.witness import Witness, wait_until

from .machines import AGENT, CHILDREN, PATIENCE_SECONDS, Workload, control_group, main_pid, migrate, wait_active

SPARED = "-1000\n"  # OOM_SCORE_ADJ_MIN, linux/oom.h: the kernel ends all others first


def restart(host: VirtualHost) -> None:
    host.systemctl("restart", AGENT)


def kill(host: VirtualHost) -> None:
    host.systemctl("kill", "--signal=KILL", AGENT)


# Where the agent of which host is held, what is done to its unit then, and on which host the workload goes on.
CASES = [
    ("source", "freeze", kill, "a"),
    ("source", "transfer", restart, "a"),
    ("destination", "restore", kill, "a"),
    ("source", "resume", restart, "b"),
    ("destination", "resume", kill, "b"),
]


@pytest.mark.parametrize(
    ("role", "phase", "act", "goes_on"), CASES, ids=[f"{role}-{phase}-{act.__name__}" for role, phase, act, _ in CASES]
)
def test_a_unit_that_is_ended_in_the_middle(
    machines: Lab, witness: Witness, role: str, phase: str, act: Callable[[VirtualHost], None], goes_on: str
) -> None:
    a, b = machines.machines
    held = a if role == "source" else b
    held.configure_agent({"PHAUL_FAULT": f"{role}.{phase}:stop"})
    restart(held)
    with Workload(machines, witness, a, "ticker", "20") as workload:
        with migrate(a, workload.pid, b) as move:
            agent = main_pid(held)
            wait_until(lambda: _is_stopped(held, agent), f"{role} does not come to {phase}", PATIENCE_SECONDS)
            held.configure_agent()
            act(held)
            wait_until(lambda: main_pid(held) not in (0, agent), "no agent in its place", PATIENCE_SECONDS)
            wait_active(held)
            wait_until(lambda: workload.running_on() == [goes_on], "not alive exactly once", PATIENCE_SECONDS)
            workload.wait_ticks()
            # Whoever waits is told in the end, or told that the agent has gone.
            wait_until(lambda: move.over, "the command waits for ever", PATIENCE_SECONDS)
        workload.check(*([a] if goes_on == "a" else [a, b]))


def test_what_was_restored_outlives_every_agent(machines: Lab, witness: Witness) -> None:
    a, b = machines.machines
    with Workload(machines, witness, a, "ticker", "20") as workload:
        group = control_group(a, workload.pid)
        with migrate(a, workload.pid, b) as move:
            assert move.wait().status == 0, move.told()
        assert control_group(b, workload.pid) == group
        assert AGENT not in group
        assert control_group(b, main_pid(b)) == f"/system.slice/{AGENT}"
        b.systemctl("stop", AGENT)
        workload.wait_ticks()
        b.systemctl("start", AGENT)
        workload.wait_ticks()
        kill(b)
        workload.wait_ticks()
        wait_active(b)
        machines.install()  # the package is replaced under the running agent
        restart(b)
        workload.wait_ticks()
        b.systemctl("stop", "phaul-workloads.service")
        workload.wait_ticks()
        b.systemctl("start", "phaul-workloads.service")
        workload.check(a, b)
        assert control_group(b, workload.pid) == group


def _is_stopped(host: VirtualHost, pid: int) -> bool:
    stat = host.stat(pid)
    return stat is not None and stat.state == "T"


def test_what_works_for_the_agent_is_not_in_its_unit(machines: Lab, witness: Witness) -> None:
    a, b = machines.machines
    a.configure_agent({"PHAUL_FAULT": "source.restore:stop"})
    restart(a)
    with Workload(machines, witness, a, "ticker", "20") as workload, migrate(a, workload.pid, b) as move:
        agent = main_pid(a)
        wait_until(lambda: _is_stopped(a, agent), "the source does not come to RESTORE", PATIENCE_SECONDS)
        children = a.path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        names = {int(pid): a.path(f"/proc/{pid}/comm").read_text().strip() for pid in children}
        assert "criu" in names.values()
        assert {a.path(f"/proc/{pid}/oom_score_adj").read_text() for pid in names} == {SPARED}, "CRIU and the keeper"
        assert {control_group(a, pid) for pid in names} == {f"{CHILDREN}{pid}" for pid in names}
        a.configure_agent()
        a.kill(agent, signal.SIGCONT)
        assert move.wait().status == 0, move.told()
        workload.check(a, b)
    groups = a.path(f"/sys/fs/cgroup{CHILDREN}")
    restart(a)
    assert [entry.name for entry in groups.iterdir() if entry.name.isdigit()] == []


def test_reloading_the_unit_reads_the_policy_again(machines: Lab) -> None:
    host = machines.machines[0]
    agent = main_pid(host)
    policy = host.path("/etc/phaul/policy.toml")
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text("[limits]\nmigrations = 3\n")
    policy.chmod(0o644)
    try:
        host.systemctl("reload", AGENT)
        shown = json.loads(host.exec(["phaul", "policy", "show", "--json"], timeout_seconds=PATIENCE_SECONDS).stdout)
        assert shown["limits"]["migrations"] == 3
        assert main_pid(host) == agent
    finally:
        policy.unlink()
        host.systemctl("reload", AGENT)


def test_units_are_as_closed_as_is_written(machines: Lab) -> None:
    page = (Path(__file__).parents[2] / "docs/systemd.md").read_text()
    written = {unit: float(score) for score, unit in re.findall(r"(\d\.\d) for `(phaul-\w+\.service)`", page)}
    host = machines.machines[0]
    found = {}
    for unit in written:
        said = host.exec(["systemd-analyze", "security", "--no-pager", unit], timeout_seconds=PATIENCE_SECONDS).stdout
        (score,) = re.findall(rf"Overall exposure level for {re.escape(unit)}: (\d+\.\d)", said)
        found[unit] = float(score)
    assert set(written) == {"phaul-agent.service", "phaul-workloads.service"}
    assert found == written


def test_a_socket_of_systemd_s_starts_the_agent_and_outlives_it(machines: Lab) -> None:
    host = machines.machines[0]
    unit = "phaul-agent.socket"
    host.systemctl("stop", AGENT)
    host.systemctl("link", f"{SOURCE}/phaul/systemd/{unit}")
    host.systemctl("start", unit)
    try:
        assert main_pid(host) == 0
        # Whoever connects starts it; under emulation that may take longer than a command waits for an answer.
        host.exec(["phaul", "status"], check=False, timeout_seconds=PATIENCE_SECONDS)
        wait_active(host)
        assert host.exec(["phaul", "status"], timeout_seconds=PATIENCE_SECONDS).returncode == 0
        before = host.path("/run/phaul/agent.sock").stat().st_ino
        host.systemctl("restart", AGENT)
        assert host.path("/run/phaul/agent.sock").stat().st_ino == before
    finally:
        host.systemctl("stop", unit, AGENT)
        host.systemctl("disable", unit)
        host.start_agent()
