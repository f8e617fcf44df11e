"""The lab itself: hosts that see each other, processes that CRIU takes, and nothing left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from phaul.errors import LabError, UsageError
from phaul.lab import cgroups, cluster, records
from phaul.lab.cluster import Lab
from phaul.lab.host import SHARED_DIRECTORY, Host
from phaul.lab.records import ProcessRecord
from phaul.system import procfs

from .conftest import unique_name

COUNTER = """
import time
for number in range(10**9):
    print(number, flush=True)
    time.sleep(0.01)
"""

# Answers each line with the number of lines so far: a state that must survive.
SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 7000), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
print("listening", flush=True)
peer, _ = listener.accept()
for number, line in enumerate(peer.makefile("rb"), 1):
    peer.sendall(b"%d %s" % (number, line))
"""

CLIENT = """
import socket, sys
peer = socket.create_connection((sys.argv[1], 7000), timeout=30)
answers = peer.makefile("r")
for line in sys.stdin:
    peer.sendall(line.encode())
    print(answers.readline(), end="", flush=True)
"""


def wait_for_text(file: Path, text: str, timeout_seconds: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not (file.exists() and text in file.read_text()):
        assert time.monotonic() < deadline, f"{text!r} did not appear in {file}"
        time.sleep(0.01)


def dump(host: Host, pid: int, images: str, *options: str) -> None:
    host.exec(["mkdir", "-m", "700", images])
    done = host.exec(["criu", "dump", "-t", str(pid), "-D", images, "-o", "dump.log", *options], check=False)
    assert done.returncode == 0, host.path(f"{images}/dump.log").read_text()


def restore(host: Host, images: str, *options: str) -> None:
    argv = ["criu", "restore", "-D", images, "-o", "restore.log", "--restore-detached", *options]
    done = host.exec(argv, check=False)
    assert done.returncode == 0, host.path(f"{images}/restore.log").read_text()


def test_hosts_reach_each_other_by_name_and_address(bare_lab: Lab) -> None:
    for here in bare_lab.members:
        for there in bare_lab.members:
            for target in (there.ip4, there.ip6):
                here.exec(["ping", "-c1", "-W2", "-q", target])
        assert here.exec(["hostname"]).stdout.strip() == here.name
        assert bare_lab.host("b").ip4 in here.exec(["getent", "ahosts", "b"]).stdout


def test_hosts_are_hosts_of_their_own(bare_lab: Lab) -> None:
    first, second = bare_lab.hosts.values()
    spaces = [procfs.read_namespaces(pid) for pid in (os.getpid(), first.pid, second.pid, bare_lab.client.pid)]
    for kind in ("mnt", "pid", "net", "uts", "ipc", "cgroup"):
        assert len({space[kind] for space in spaces}) == len(spaces), kind
    first.path("/root/mark").write_text("only on the first host")
    assert not second.path("/root/mark").exists()
    assert first.exec(["cat", "/root/mark"]).stdout == "only on the first host"
    first.path("/srv/shared/both").write_text("on all hosts")
    assert second.exec(["cat", "/srv/shared/both"]).stdout == (bare_lab.shared / "both").read_text()
    identities = {host.exec(["cat", "/etc/machine-id"]).stdout for host in bare_lab.members}
    assert len(identities) == 3
    assert first.exec(["cat", "/proc/sys/net/ipv4/tcp_congestion_control"]).stdout.strip() in ("cubic", "reno")


def test_the_image_has_a_criu_that_dumps_tcp_on_new_kernels(bare_lab: Lab) -> None:
    version = bare_lab.host("a").exec(["criu", "--version"]).stdout
    numbers = tuple(int(part) for part in version.split()[1].split(".")[:2])
    assert numbers >= (4, 2)


def test_exec_gives_status_and_output(bare_lab: Lab) -> None:
    host = bare_lab.host("a")
    done = host.exec(
        ["sh", "-c", "cat; echo bad >&2; echo $WORD; exit 7"], input="in\n", env={"WORD": "w"}, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\nw\n", "bad\n")
    with pytest.raises(LabError, match="ended with status 7") as caught:
        host.exec(["sh", "-c", "echo why >&2; exit 7"])
    assert caught.value.detail == "why"


def test_a_killed_popen_takes_its_command_along(bare_lab: Lab) -> None:
    host = bare_lab.host("a")
    with host.popen(["sh", "-c", "echo $$; exec sleep 1000"]) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert host.running(pid)
        process.kill()
    host.wait_ended(pid, 5)


def test_the_first_process_reaps_orphans(bare_lab: Lab) -> None:
    host = bare_lab.host("a")
    orphan = int(host.exec(["sh", "-c", "sleep 0.2 >/dev/null 2>&1 & echo $!"]).stdout)
    stat = host.stat(orphan)
    assert stat is not None
    assert stat.parent_pid == 1
    host.wait_ended(orphan, 5)


def test_hosts_hand_out_different_pids(bare_lab: Lab) -> None:
    pids = [host.spawn(["sleep", "1000"]) for host in bare_lab.members]
    for host, pid in zip(bare_lab.members, pids, strict=True):
        assert host.running(pid)
        assert not any(other.running(pid) for other in bare_lab.members if other is not host)
        host.kill(pid)
        host.wait_ended(pid, 5)


def test_spawn_leaves_nothing_from_outside_in_the_process(bare_lab: Lab) -> None:
    host = bare_lab.host("b")
    pid = host.spawn(["sleep", "1000"], log="/var/log/sleep.log")
    links = {descriptor.number: descriptor.link for descriptor in procfs.read_descriptors(outer_pid(host, pid))}
    assert links == {0: "/dev/null", 1: "/var/log/sleep.log", 2: "/var/log/sleep.log"}
    stat = host.stat(pid)
    assert stat is not None
    assert (stat.parent_pid, stat.session_id, stat.terminal) == (1, pid, 0)
    host.kill(pid)


def test_spawn_tells_of_a_command_that_is_not_there(bare_lab: Lab) -> None:
    with pytest.raises(LabError) as caught:
        bare_lab.host("a").spawn(["no-such-command"])
    assert "no-such-command" in caught.value.detail


def test_criu_moves_a_process_to_the_other_host(bare_lab: Lab) -> None:
    source, destination = bare_lab.host("a"), bare_lab.host("b")
    log = bare_lab.shared / "counter.log"
    pid = source.spawn(["python3", "-c", COUNTER], log=f"{SHARED_DIRECTORY}/counter.log")
    wait_for_text(log, "10\n")
    dump(source, pid, f"{SHARED_DIRECTORY}/counter")
    source.wait_ended(pid, 5)
    last = log.read_text()
    restore(destination, f"{SHARED_DIRECTORY}/counter")
    wait_for_text(log, f"{last}{int(last.split()[-1]) + 1}\n")
    stat = destination.stat(pid)
    assert stat is not None
    assert stat.parent_pid == 1
    destination.kill(pid)
    destination.wait_ended(pid, 5)


@pytest.mark.parametrize("lock", ["iptables", "nftables"])
@pytest.mark.parametrize("version", ["ip4", "ip6"])
def test_criu_keeps_a_connection(bare_lab: Lab, version: str, lock: str) -> None:
    host, images, log = bare_lab.host("a"), f"/run/server-{version}-{lock}", f"/var/log/server-{version}-{lock}.log"
    address = getattr(host, version)
    pid = host.spawn(["python3", "-c", SERVER, address], log=log)
    wait_for_text(host.path(log), "listening")
    with bare_lab.client.popen(["python3", "-c", CLIENT, address], stdin=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("one\n")
        client.stdin.flush()
        assert client.stdout.readline() == "1 one\n"
        dump(host, pid, images, "--tcp-established", "--network-lock", lock)
        host.wait_ended(pid, 5)
        client.stdin.write("two\n")
        client.stdin.flush()
        restore(host, images, "--tcp-established")
        assert client.stdout.readline() == "2 two\n"
        client.stdin.close()
        assert client.wait(10) == 0
    host.wait_ended(pid, 5)


def test_agents_serve_and_can_be_stopped_killed_and_started(lab: Lab) -> None:
    host = lab.host("a")
    first = host.agent_pid
    assert first is not None
    stat = host.stat(first)
    assert stat is not None
    assert stat.parent_pid == 1
    with pytest.raises(LabError, match="running already"):
        host.start_agent()
    host.stop_agent()
    assert host.agent_pid is None
    host.start_agent()
    assert host.agent_pid not in (None, first)
    host.kill_agent()
    assert host.agent_pid is None
    host.start_agent(["--log-level", "debug"])
    assert Lab.open(lab.name).host("a").agent_pid == host.agent_pid


def test_an_agent_that_does_not_start_shows_its_log(lab: Lab) -> None:
    host = lab.host("b")
    host.stop_agent()
    with pytest.raises(LabError, match="ended while it was starting") as caught:
        host.start_agent(["--no-such-option"])
    assert "no-such-option" in caught.value.detail
    host.start_agent()


def test_down_leaves_nothing() -> None:
    name = unique_name("down")
    before = machine_state()
    with Lab.up(name) as lab:
        pid = lab.host("a").spawn(["sleep", "1000"])
        group = lab.host("a").path("/sys/fs/cgroup/some/group")
        if cgroups.unified_mount():
            group.mkdir(parents=True)
            (group / "cgroup.procs").write_text(str(outer_pid(lab.host("a"), pid)))
        lab.host("a").exec(["mount", "-t", "tmpfs", "none", "/mnt"])
        lab.host("b").exec(["ip", "netns", "add", "inner"])
        namespaces = namespaces_of(lab)
        assert processes_in(namespaces)
    assert_nothing_left(name, namespaces)
    assert machine_state() == before
    lab.down()
    assert not cluster.down(name)


KILLED_AT = {
    "nothing but the directory": "records.LabDescription.write",
    "no host yet": "namespace_host.NamespaceHost.launch",
    "hosts without links": "network.connect",
    "agents that are starting": "namespace_host.NamespaceHost.wait_agent",
}
KILLED_UP = """
import os, signal, sys
from phaul.lab import cluster, namespace_host, network, records
owner, _, attribute = sys.argv[2].rpartition(".")
setattr(eval(owner), attribute, lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL))
cluster.Lab.up(sys.argv[1])
"""


@pytest.mark.parametrize("place", KILLED_AT.values(), ids=KILLED_AT.keys())
def test_down_of_a_lab_whose_up_was_killed(place: str) -> None:
    name = unique_name("killed")
    before = machine_state()
    killed = subprocess.run([sys.executable, "-c", KILLED_UP, name, place], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(LabError):
        Lab.up(name)
    # Whatever was started may only now come to write itself down.
    time.sleep(0.2)
    directory = records.STATE_ROOT / name
    holders = [record for file in directory.glob("*.process") if (record := ProcessRecord.read(file))]
    assert bool(holders) == (place in ("network.connect", "namespace_host.NamespaceHost.wait_agent"))
    namespaces = frozenset(
        link for holder in holders for kind, link in procfs.read_namespaces(holder.pid).items() if kind != "user"
    )
    namespaces -= frozenset(procfs.read_namespaces(os.getpid()).values())
    assert cluster.down(name)
    assert_nothing_left(name, namespaces)
    assert machine_state() == before


def test_a_lab_whose_hosts_have_died_can_be_taken_down() -> None:
    name = unique_name("dead")
    lab = Lab.up(name, agents=False)
    try:
        os.kill(lab.host("a").pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while lab.host("a").alive:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(LabError, match="Host a is not up"):
            lab.host("a").exec(["true"])
        assert lab.host("b").exec(["true"]).returncode == 0
    finally:
        lab.down()
    assert_nothing_left(name, frozenset())


def test_two_labs_at_once_do_not_see_each_other(bare_lab: Lab) -> None:
    with Lab.up(unique_name("second"), agents=False) as other:
        here, there = bare_lab.host("a"), other.host("a")
        assert here.ip4 == there.ip4
        assert here.path("/sys/class/net/eth0").resolve() != there.path("/etc").resolve()
        there.path("/tmp/mark").write_text("")
        assert not here.path("/tmp/mark").exists()
        other.client.exec(["ping", "-c1", "-W2", "-q", "a"])
    bare_lab.client.exec(["ping", "-c1", "-W2", "-q", "a"])


def test_mistakes_are_told(bare_lab: Lab) -> None:
    with pytest.raises(LabError, match="up already"):
        Lab.up(bare_lab.name, agents=False)
    assert bare_lab.host("a").alive
    with pytest.raises(LabError, match="no lab"):
        Lab.open("no-such-lab")
    with pytest.raises(UsageError, match="no host 'z'"):
        bare_lab.host("z")
    for name in ("", "../x", "UP", "a" * 33):
        with pytest.raises(UsageError):
            cluster.down(name)
    for hosts in (["client"], ["a", "a"], ["a/b"], ["much-too-long-a-name"]):
        with pytest.raises(UsageError):
            Lab.up(unique_name("never"), hosts)


def test_only_root_can_have_a_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="root"):
        Lab.up(unique_name("never"))


def outer_pid(host: Host, pid: int) -> int:
    """The machine's number of a host's process."""
    (found,) = (
        outer
        for outer in processes_in(frozenset({procfs.read_namespaces(host.pid)["pid"]}))
        if procfs.read_status(outer)["NSpid"].split()[-1] == str(pid)
    )
    return found


def namespaces_of(lab: Lab) -> frozenset[int]:
    """The inodes of the namespaces of a lab that is up."""
    found = set()
    for host in lab.members:
        found |= {inode for kind, inode in procfs.read_namespaces(host.pid).items() if kind != "user"}
    switch = ProcessRecord.read(lab.directory / "switch.process")
    assert switch is not None
    found.add(procfs.read_namespaces(switch.pid)["net"])
    return frozenset(found - set(procfs.read_namespaces(os.getpid()).values()))


def processes_in(namespaces: frozenset[int]) -> Iterator[int]:
    """The processes of the machine that are in one of these namespaces."""
    for pid in procfs.all_pids():
        try:
            if namespaces & set(procfs.read_namespaces(pid).values()):
                yield pid
        except OSError:
            continue


def machine_state() -> dict[str, list[str]]:
    """What a lab could leave in the machine's own namespaces; other labs, which may come and go, do not count."""
    return {
        "links": names_in(Path("/sys/class/net")),
        "named network namespaces": names_in(Path("/run/netns")),
        "mounts": sorted(
            line.split(" ", 4)[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if any(word in line for word in ("phaul", "overlay", "nsfs", "lab-"))
        ),
    }


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir()) if directory.exists() else []


def assert_nothing_left(name: str, namespaces: frozenset[int]) -> None:
    assert list(processes_in(namespaces)) == []
    assert not list(records.STATE_ROOT.glob(f"{name}*"))
    mount = cgroups.unified_mount()
    if mount:
        assert not (mount / cgroups.TOP_GROUP / name).exists()
        for pid in procfs.all_pids():
            try:
                groups = Path(f"/proc/{pid}/cgroup").read_text()
                dead = procfs.read_stat(pid).is_dead  # a killed maker's processes wait for the machine's init
            except OSError:
                continue
            assert dead or f"/{name}/" not in groups
