"""What cannot go is refused with its reason and a way out, and the workload does not even notice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from phaul.lab.host import Host

from .clients import Numbering
from .moves import Move, migrate
from .stage import Stage
from .witness import wait_until

PORT = 5000
NO_SUCH_PID = 99_999
NO_SUCH_HOST = "10.77.0.99"
UNREACHABLE_STATUS, NOT_TRUSTED_STATUS = 11, 12
HELD_FILE = "/srv/held"
OTHER_SOCKET = "/run/other/agent.sock"

# Each becomes a workload that holds something CRIU cannot dump. io_uring_setup is 425 on every architecture
# (asm-generic/unistd.h); its second argument is a struct io_uring_params of 120 bytes, all zero.
IO_URING = """
import ctypes, time
print(ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)), flush=True)
time.sleep(1000)
"""
MPTCP = """
import socket, time
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)  # IPPROTO_MPTCP
listener.bind(("0.0.0.0", 5002))
listener.listen()
time.sleep(1000)
"""
PIPE = "sleep 1000 | sleep 1001 & wait"


@contextmanager
def undisturbed(stage: Stage) -> Iterator[int]:
    """A workload that ticks on a; whatever is tried meanwhile, it must not stand still for a moment."""
    pid = stage.start("ticker")
    began = time.monotonic()
    yield pid
    stage.check_undisturbed(pid, began)


def test_what_is_no_workload(stage: Stage) -> None:
    agent = stage.a.agent_pid
    assert agent is not None
    with undisturbed(stage):
        assert f"no process {NO_SUCH_PID}" in stage.refused(NO_SUCH_PID)["message"]
        assert "own agent" in stage.refused(agent)["message"]
        assert "ancestor" in stage.refused(1)["message"]
    assert stage.a.agent_pid == agent


def test_a_thread_is_not_a_process(stage: Stage) -> None:
    pid = stage.start("threads", "3")
    began = time.monotonic()
    thread = max(stage.thread_ids(stage.a, pid))
    assert f"thread of process {pid}" in stage.refused(thread)["message"]
    stage.check_undisturbed(pid, began)


def test_a_pid_that_is_taken_there(stage: Stage) -> None:
    with undisturbed(stage) as pid:
        twin = spawn_as(stage.b, pid)
        error = stage.refused(pid)
        assert str(pid) in error["message"]
        assert "in use" in error["message"]
        assert stage.b.running(twin)
        stage.b.kill(twin)
        stage.b.wait_ended(twin)
    stage.move(pid, stage.a)
    stage.check_ticks(pid, stage.a, stage.b)


@pytest.mark.parametrize("difference", ["missing", "size", "mode"])
def test_a_file_that_is_not_the_same_there(stage: Stage, difference: str) -> None:
    changes: dict[str, Callable[[], object]] = {
        "missing": lambda: stage.b.path(HELD_FILE).unlink(),
        "size": lambda: stage.b.path(HELD_FILE).write_text("another content"),
        "mode": lambda: stage.b.path(HELD_FILE).chmod(0o600),
    }
    for host in (stage.a, stage.b):
        host.path(HELD_FILE).write_text("content")
        host.path(HELD_FILE).chmod(0o644)
    pid = stage.start("server", "--open", HELD_FILE)
    began = time.monotonic()
    changes[difference]()
    error = stage.refused(pid)
    assert HELD_FILE in error["message"]
    assert difference in error["message"]
    stage.check_undisturbed(pid, began)
    for host in (stage.a, stage.b):
        host.path(HELD_FILE).unlink(missing_ok=True)


def test_what_criu_cannot_dump(stage: Stage) -> None:
    uring = stage.spawn(["python3", "-c", IO_URING])
    mptcp = stage.spawn(["python3", "-c", MPTCP])
    with undisturbed(stage):
        stage.wait_listening(stage.a, 5002)
        assert "io_uring" in stage.refused(uring)["message"]
        assert "Multipath TCP" in stage.refused(mptcp)["message"]
        assert "multipathtcp" in stage.refused(mptcp)["hint"]
    assert stage.a.running(uring)
    assert stage.a.running(mptcp)


def test_half_of_a_pipe(stage: Stage) -> None:
    shell = stage.spawn(["sh", "-c", PIPE])
    readers: list[int] = []

    def piped() -> bool:
        readers[:] = [pid for pid in stage.descendants(stage.a, shell) if reads_a_pipe(stage.a, pid)]
        return bool(readers)

    wait_until(piped, f"nobody below {shell} reads from a pipe")
    assert "pipe" in stage.refused(readers[0])["message"]
    assert stage.a.running(readers[0])


def test_addresses_that_cannot_move(stage: Stage) -> None:
    nowhere, twice, odd = "10.77.0.90/24", "10.77.0.91/24", "10.77.0.92/24"
    for host in (stage.a, stage.b):
        stage.add_address(twice, host)
    stage.add_address(odd)
    with undisturbed(stage) as pid:
        assert "not on the source" in stage.refused(pid, nowhere)["message"]
        assert "already" in stage.refused(pid, twice)["message"]
        assert "no network device" in stage.refused(pid, f"{odd}@nic7")["message"]
        assert "/25" in stage.refused(pid, odd.replace("/24", "/25"))["message"]
    for host, address in ((stage.a, twice), (stage.b, twice), (stage.a, odd)):
        assert stage.has_address(host, address)
    assert not stage.has_address(stage.b, odd)


def test_a_connection_whose_address_stays_behind(stage: Stage) -> None:
    address = stage.add_address(stage.ip4)
    pid = stage.start("server", "--listen", address, str(PORT))
    began = time.monotonic()
    with Numbering(stage.client, (address, PORT)) as client:
        stage.wait_exchange(client)
        error = stage.refused(pid)
        assert address in error["message"]
        assert f"--address {stage.ip4}" in error["hint"]
        stage.check_undisturbed(pid, began)
        (account,) = client.finish()
        assert (account.error, account.acknowledged) == ("", account.sent)


def test_a_destination_that_does_not_answer(stage: Stage) -> None:
    with undisturbed(stage) as pid:
        # The client of the lab has no agent; the other address nobody has.
        for to in ("client", NO_SUCH_HOST):
            error = stage.refused(pid, to=to, code="UnreachableError")
            assert to in error["message"]
            assert error["exit_status"] == UNREACHABLE_STATUS


def test_an_agent_that_may_not_leave_its_host(stage: Stage) -> None:
    """Off loopback there is no migration without an encrypted connection, unless the agent was told `--insecure`."""
    where = ["--listen", "127.0.0.1:7500", "--page-port", "0", "--socket", OTHER_SOCKET]
    state = ["--runtime-dir", "/run/other", "--state-dir", "/run/other/state"]
    with undisturbed(stage) as pid:
        agent = stage.spawn(["phaul", "agent", *where, *state])
        stage.wait_listening(stage.a, 7500)
        with Move(stage.a, pid, "b", options=["--socket", OTHER_SOCKET]) as move:
            move.wait()
        assert move.status == NOT_TRUSTED_STATUS, move.told()
        assert "--insecure" in move.error["message"] + move.error["hint"]
        stage.a.kill(agent)


def test_a_dry_run_touches_nothing(stage: Stage) -> None:
    with undisturbed(stage) as pid:
        assert migrate(stage.a, pid, "b", options=["--dry-run"]).status == 0
        assert not stage.b.running(pid)


def test_a_workload_that_is_on_its_way_already(stage: Stage) -> None:
    pid = stage.start("server", "--memory", "256")
    with Move(stage.a, pid, "b") as first:
        first.wait_phase("prepare")
        second = migrate(stage.a, pid, "b")
        first.wait()
    # The second either came while the first was under way, or saw that the process had left.
    assert second.error["code"] == "PreflightError", second.told()
    assert first.report["new_pid"] == pid
    stage.check_ticks(pid, stage.a, stage.b)


def spawn_as(host: Host, pid: int) -> int:
    """Start something on a host that gets this very PID; the kernel goes on counting where it was."""
    counter = host.path("/proc/sys/kernel/ns_last_pid")
    script = (
        'last=$(cat /proc/sys/kernel/ns_last_pid); echo "$1" >/proc/sys/kernel/ns_last_pid; '
        'sleep 1000 </dev/null >/dev/null 2>&1 & echo $!; echo "$last" >/proc/sys/kernel/ns_last_pid'
    )
    assert counter.exists()
    got = int(host.exec(["setsid", "sh", "-c", script, "sh", str(pid - 1)]).stdout)
    assert got == pid
    return got


def reads_a_pipe(host: Host, pid: int) -> bool:
    """Whether the standard input of a process is a pipe."""
    try:
        return str(host.path(f"/proc/{pid}/fd/0").readlink()).startswith("pipe:")
    except OSError:  # it has just ended
        return False
