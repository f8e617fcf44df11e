"""From two bare Debian machines to a migration between them, by what a person types, and back to bare ones."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import pytest

import phaul
from phaul.errors import PreflightError
from phaul.lab.cluster import Lab
from tests.lab.capture import Capture
from tests.lab.clients import Numbering
from tests.lab.moves import Move
from tests.lab.witness import Witness

from .bare import INSTALL_SECONDS, bare_lab, install, know, make_newer_wheel, put, steps
from .machines import AGENT, PATIENCE_SECONDS, Workload, main_pid, set_up
from .vagrant_demo import run_script

ADDRESS = "10.77.0.192"
PORT = 5000
MARK = "=what-is-in-memory-and-nobody-may-see="
NOT_INSTALLED_STATUS = 14
ALL_UNCHANGED = {
    **dict.fromkeys(("packages", "phaul", "certificate", "units", "agent"), "unchanged"),
    **dict.fromkeys(("doctor", "connection"), "fine"),
}
UPGRADED = ALL_UNCHANGED | {"phaul": "done", "agent": "done"}
NEWER = "99.0"


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    """Two machines with an SSH server."""
    with bare_lab(f"test-bare-{os.getpid()}") as lab:
        for host in lab.members:
            set_up(host)
        yield lab


@pytest.fixture(scope="module")
def added(bare: Lab) -> dict[str, dict[str, str]]:
    """Both are added, by what a person types on the client; gives what became of each step, host by host."""
    client = bare.client
    client.exec(["phaul", "trust", "init", "client"])
    for host in bare.machines:
        assert host.exec(["which", "criu", "phaul"], check=False).stdout == ""
        know(bare, host)
    # At once, since most of the time is the machines'.
    adding = {host: client.popen(["phaul", "host", "add", f"root@{host.name}", "--json"]) for host in bare.machines}
    found = {}
    for host, command in adding.items():
        output, complaint = command.communicate(timeout=INSTALL_SECONDS)
        assert command.returncode == 0, output + complaint
        found[host.name] = steps(output, host.name)
    return found


def typed(bare: Lab, *words: str) -> str:
    """What a command prints that is typed on the client, and does what it should."""
    done = bare.client.exec(["phaul", *words], check=False, timeout_seconds=INSTALL_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def take_away(bare: Lab, name: str) -> None:
    """Make a host bare again, if it is not."""
    listed = bare.client.exec(["phaul", "host", "list", "--json"]).stdout
    if any(json.loads(line)["name"] == name for line in listed.splitlines()):
        bare.client.exec(["phaul", "host", "remove", name], timeout_seconds=INSTALL_SECONDS)


def test_a_host_whose_key_is_not_known_is_not_touched(bare: Lab) -> None:
    known = bare.client.path("/root/.ssh/known_hosts")
    assert not known.exists()
    assert not bare.client.path("/var/lib/phaul/trust").exists()
    bare.client.exec(["phaul", "trust", "init", "elsewhere", "--state-dir", "/tmp/elsewhere"])
    command = ["phaul", "host", "add", "root@a", "--json", "--state-dir", "/tmp/elsewhere"]
    refused = bare.client.exec(command, check=False)
    assert refused.returncode == NOT_INSTALLED_STATUS
    assert "the key of root@a is not known here" in json.loads(refused.stdout)["error"]["message"]
    assert not known.exists()


def test_two_commands_make_two_hosts_ready(bare: Lab, added: dict[str, dict[str, str]]) -> None:
    everything = {step: "done" if state == "unchanged" else state for step, state in ALL_UNCHANGED.items()}
    assert added == {"a": everything, "b": everything}
    for host in bare.machines:
        assert host.systemctl("is-active", AGENT) == "active"
        assert host.systemctl("is-enabled", AGENT) == "enabled"


@pytest.mark.usefixtures("added")
def test_typed_again_it_changes_nothing(bare: Lab) -> None:
    host = bare.machines[1]
    before = host.systemctl("show", "--property=MainPID,ActiveEnterTimestamp", AGENT)
    assert steps(typed(bare, "host", "add", "root@b", "--json"), "b") == ALL_UNCHANGED
    assert host.systemctl("show", "--property=MainPID,ActiveEnterTimestamp", AGENT) == before


@pytest.mark.usefixtures("added")
def test_one_command_moves_a_server_and_its_client_stays_connected(bare: Lab) -> None:
    a, b = bare.machines
    witness = Witness(bare.client)
    a.exec(["ip", "address", "add", f"{ADDRESS}/24", "dev", "eth0"])
    try:
        with (
            Workload(bare, witness, a, "server", "--listen", ADDRESS, str(PORT), mark=MARK) as workload,
            Numbering(bare.client, (ADDRESS, PORT)) as client,
        ):
            assert MARK.encode() in a.path(f"/proc/{workload.pid}/environ").read_bytes()
            capture = Capture(b, MARK.encode())
            # What is compressed would hide the mark as well, and is so only where the machine is slow enough.
            options = ["--compress", "none"]
            with Move(a, workload.pid, "b", f"{ADDRESS}/24", options=options, patience_seconds=INSTALL_SECONDS) as move:
                assert move.wait().status == 0, move.told()
            seen, (in_the_clear,) = capture.stop()
            assert seen > move.report["sent_bytes"]
            assert in_the_clear == 0
            workload.check(a, b)
            (account,) = client.finish()
            assert account.error == ""
            assert account.sent == account.acknowledged
            assert any(moment > move.ended for moment in account.arrivals)
            assert MARK.encode() in b.path(f"/proc/{workload.pid}/environ").read_bytes()
    finally:
        witness.close()
        for host in bare.machines:
            host.exec(["ip", "address", "del", f"{ADDRESS}/24", "dev", "eth0"], check=False)


@pytest.mark.long
@pytest.mark.usefixtures("added")
def test_the_vagrant_demo_runs_on_them(bare: Lab) -> None:
    """Its provisioning finds everything done; its demo moves a server there and back."""
    provisioned = run_script(bare, "provision.sh", "/nowhere", "a", "b")
    assert len(re.findall("^· .*unchanged$", provisioned, re.MULTILINE)) == 2 * 5
    assert "one connection held to the end" in run_script(bare, "demo.py")


@pytest.mark.long
@pytest.mark.usefixtures("added")
def test_upgrade_brings_another_version_and_what_was_moved_runs_on(bare: Lab) -> None:
    a, b = bare.machines
    witness = Witness(bare.client)
    try:
        with Workload(bare, witness, a, "ticker", "20") as workload:
            with Move(a, workload.pid, "b", patience_seconds=INSTALL_SECONDS) as move:
                assert move.wait().status == 0, move.told()
            newer = bare.shared / "newer"
            newer.mkdir()
            install(bare, make_newer_wheel(newer, NEWER))
            agent = main_pid(b)
            assert steps(typed(bare, "host", "upgrade", "b", "--json"), "b") == UPGRADED
            assert main_pid(b) not in (0, agent)
            assert b.exec(["phaul", "--version"], timeout_seconds=PATIENCE_SECONDS).stdout.split()[-1] == NEWER
            assert len([each for each in b.path("/opt/phaul").iterdir() if "-" in each.name]) == 2
            workload.check(a, b)
            # One of them has it: they refuse each other, and nothing is touched.
            with Move(b, workload.pid, "a", patience_seconds=INSTALL_SECONDS) as move:
                assert move.wait().status == PreflightError.exit_status, move.told()
                assert "speak different versions" in json.dumps(move.events)
            listed = map(json.loads, typed(bare, "host", "list", "--json").splitlines())
            assert [(each["version"], each["answers"]) for each in listed] == [(phaul.__version__, True), (NEWER, True)]
            upgraded = typed(bare, "host", "upgrade", "--json")
            assert (steps(upgraded, "a"), steps(upgraded, "b")) == (UPGRADED, ALL_UNCHANGED)
            with Move(b, workload.pid, "a", patience_seconds=INSTALL_SECONDS) as move:
                assert move.wait().status == 0, move.told()
            workload.check(a, b, a)
    finally:
        witness.close()


@pytest.mark.usefixtures("added")
def test_what_was_added_is_listed_and_can_be_removed(bare: Lab) -> None:
    client, b = bare.client, bare.machines[1]
    listed = [json.loads(line) for line in client.exec(["phaul", "host", "list", "--json"]).stdout.splitlines()]
    assert [(each["name"], each["answers"]) for each in listed] == [("a", True), ("b", True)]
    pid = b.spawn(["sleep", "1000"])
    assert steps(typed(bare, "host", "remove", "b", "--json"), "b") == {
        "agent": "done",
        "files": "done",
        "certificate": "done",
    }
    assert b.running(pid)
    assert b.systemctl("is-active", AGENT, check=False) == "inactive"
    assert b.exec(["which", "phaul"], check=False).stdout == ""
    for path in ("/opt/phaul", f"/etc/systemd/system/{AGENT}", "/etc/phaul", "/var/lib/phaul/trust/host.pem"):
        assert not b.path(path).exists(), path
    shown = json.loads(client.exec(["phaul", "trust", "show", "--json"]).stdout)
    assert [host["name"] for host in shown["hosts"] if host["revoked"]] == ["b"]
    b.kill(pid)


@pytest.mark.long
@pytest.mark.usefixtures("added")
def test_a_host_with_nothing_gets_an_agent_for_one_migration(bare: Lab) -> None:
    """From a, which becomes an authority of its own, to b, which is made bare again."""
    take_away(bare, "b")
    a, b = bare.machines
    a.exec(["sh", "-c", "rm -r /var/lib/phaul/trust && phaul trust init a"], timeout_seconds=PATIENCE_SECONDS)
    a.systemctl("restart", AGENT)
    a.path("/root/.ssh/id_ed25519").write_bytes(a.ssh_key.read_bytes())
    a.path("/root/.ssh/id_ed25519").chmod(0o600)
    a.path("/root/.ssh/known_hosts").write_text(bare.client.path("/root/.ssh/known_hosts").read_text())
    before = b.exec(["ls", "/var/tmp", "/run/systemd/system", "/opt", "/run"]).stdout
    witness = Witness(bare.client)
    try:
        with Workload(bare, witness, a, "ticker", "20") as workload:
            command = ["phaul", "migrate", str(workload.pid), "--to", "ssh://root@b", "--json"]
            moved = a.exec(command, timeout_seconds=INSTALL_SECONDS)
            assert json.loads(moved.stdout.splitlines()[-1])["outcome"] == "completed"
            workload.check(a, b)
            assert b.exec(["pgrep", "-f", "phaul agent"], check=False).stdout == ""
            assert b.exec(["ls", "/var/tmp", "/run/systemd/system", "/opt", "/run"]).stdout == before
            shown = json.loads(a.exec(["phaul", "trust", "show", "--json"]).stdout)
            assert [host["name"] for host in shown["hosts"] if host["revoked"]] == ["b"]
    finally:
        witness.close()


@pytest.mark.long
@pytest.mark.usefixtures("added")
def test_the_debian_package_is_installed_and_host_add_leaves_it_alone(bare: Lab) -> None:
    """Built on the client, which has the Python of Debian 13."""
    take_away(bare, "b")
    client, b = bare.client, bare.machines[1]
    build = ["/opt/phaul/venv/bin/python", "-m", "phaul.install.debian", "--out", "/srv/shared"]
    file = client.exec(build, timeout_seconds=INSTALL_SECONDS).stdout.strip()
    put(b, bare.shared / file.rpartition("/")[2], "/root/phaul.deb")
    install = "DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends /root/phaul.deb"
    b.exec(["sh", "-c", install], timeout_seconds=INSTALL_SECONDS)
    assert b.exec(["readlink", "-f", "/usr/bin/phaul"]).stdout == "/usr/lib/phaul/bin/phaul\n"
    assert b.systemctl("is-active", AGENT, check=False) == "inactive"
    assert steps(typed(bare, "host", "add", "root@b", "--json"), "b") == ALL_UNCHANGED | {
        "certificate": "done",
        "units": "done",  # the settings, which say where to listen
        "agent": "done",
    }
    assert steps(typed(bare, "host", "add", "root@b", "--json"), "b") == ALL_UNCHANGED
    assert b.systemctl("show", "--property=FragmentPath", "--value", AGENT) == f"/usr/lib/systemd/system/{AGENT}"
    b.exec(["apt-get", "purge", "-qq", "phaul"], timeout_seconds=INSTALL_SECONDS)
    assert b.systemctl("is-active", AGENT, check=False) == "inactive"
    for path in ("/usr/lib/phaul", "/usr/bin/phaul", "/etc/phaul", "/var/lib/phaul"):
        assert not b.path(path).exists(), path
