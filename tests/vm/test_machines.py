"""The virtual machines themselves, and migrations between them: a kernel, a systemd and users of their own."""

from __future__ import annotations

import pytest

from phaul.lab.cluster import Lab
from tests.lab.clients import Numbering
from tests.lab.witness import Witness, wait_until

from .machines import AGENT, PATIENCE_SECONDS, Workload, control_group, main_pid, migrate

ADDRESS = "10.77.0.190"
PORT = 5000
NOBODY = 65534


def test_each_tracks_memory_and_its_agent_serves(machines: Lab) -> None:
    for host in machines.machines:
        assert host.exec(["criu", "check", "--feature", "mem_dirty_track"]).returncode == 0
        assert host.systemctl("is-system-running") == "running"
        assert host.systemctl("is-active", AGENT) == "active"
        doctor = host.exec(["phaul", "doctor"], check=False, timeout_seconds=PATIENCE_SECONDS)
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr


def test_hosts_are_used_like_those_in_namespaces(machines: Lab) -> None:
    first, second = machines.machines
    assert first.exec(["hostname"]).stdout == f"{first.name}\n"
    assert first.exec(["tr", "a-z", "A-Z"], input="text\n").stdout == "TEXT\n"
    assert first.exec(["sh", "-c", "echo wrong >&2; exit 3"], check=False).stderr == "wrong\n"
    assert first.exec(["sh", "-c", "kill -TERM $$"], check=False).returncode == -15
    file = first.path("/tmp/some/file")
    file.parent.mkdir()
    file.write_text("content")
    assert [found.name for found in first.path("/tmp/some").iterdir()] == ["file"]
    assert not second.path("/tmp/some").exists()
    with pytest.raises(FileNotFoundError):
        second.path("/tmp/some/file").read_text()
    with pytest.raises(TypeError):
        file.open()
    file.unlink()
    file.parent.rmdir()
    assert machines.client.exec(["ping", "-c", "1", "-W", "20", second.name]).returncode == 0
    pid = second.spawn(["sleep", "1000"])
    stat = second.stat(pid)
    assert stat is not None
    assert stat.parent_pid == 1
    assert not first.running(pid)
    second.kill(pid)
    second.wait_ended(pid, PATIENCE_SECONDS)


def test_a_command_ends_with_who_stands_for_it(machines: Lab) -> None:
    host = machines.machines[0]
    with host.popen(["sh", "-c", "echo $$; exec sleep 1000"]) as command:
        assert command.stdout is not None
        pid = int(command.stdout.readline())
        assert host.running(pid)
        command.kill()
    wait_until(lambda: not host.running(pid), "the command outlives its other end", PATIENCE_SECONDS)


def test_a_connected_workload_goes_there_and_back(machines: Lab, witness: Witness) -> None:
    a, b = machines.machines
    a.exec(["ip", "address", "add", f"{ADDRESS}/24", "dev", "eth0"])
    try:
        with (
            Workload(machines, witness, a, "server", "--listen", ADDRESS, str(PORT)) as workload,
            Numbering(machines.client, (ADDRESS, PORT)) as client,
        ):
            group = control_group(a, workload.pid)
            for source, destination in ((a, b), (b, a)):
                with migrate(source, workload.pid, destination, f"{ADDRESS}/24") as move:
                    assert move.wait().status == 0, move.told()
                workload.wait_ticks()
                assert control_group(destination, workload.pid) == group
            workload.check(a, b, a)
            (account,) = client.finish()
            assert account.error == ""
            assert account.sent == account.acknowledged
            assert any(moment > move.ended for moment in account.arrivals)
    finally:
        for host in machines.machines:
            host.exec(["ip", "address", "del", f"{ADDRESS}/24", "dev", "eth0"], check=False)


def test_a_workload_of_another_user_goes(machines: Lab, witness: Witness) -> None:
    a, b = machines.machines
    with Workload(machines, witness, a, "ticker", "20", as_user=NOBODY) as workload:
        with migrate(a, workload.pid, b) as move:
            assert move.wait().status == 0, move.told()
        workload.check(a, b)
        status = b.path(f"/proc/{workload.pid}/status").read_text()
        assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
        assert main_pid(b) != workload.pid
