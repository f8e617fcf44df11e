"""The commands against a scripted agent: output, exit statuses, Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from phaul import __version__
from phaul.agent.client import AgentClient
from phaul.errors import NoSuchMigrationError, NotTrustedError, PreflightError, UnreachableError
from phaul.rpc.v1 import agent_pb2 as pb
from phaul.rpc.v1 import facts_pb2 as facts
from tests.unit.fake_agent import (
    CANCELLED,
    COMPLETED,
    MIGRATION_ID,
    REPORT,
    ROLLED_BACK,
    START_UNIX_US,
    Script,
    fake_agent,
)

PHAUL = [sys.executable, "-c", "from phaul.cli.main import main; main()"]
ENDED_SECONDS = 30  # a machine shared by several may need seconds to import grpc
REFUSAL = facts.Problem(code="no_criu", message="no CRIU on b", hint="Install.", severity=facts.SEVERITY_REFUSES)
WARNING = facts.Problem(code="slow", message="it may be slow", severity=facts.SEVERITY_WARNS)
LISTED = pb.MigrationSummary(
    migration_id=MIGRATION_ID,
    role=pb.ROLE_SOURCE,
    peer="b:7428",
    root_pid=4711,
    command="redis-server",
    outcome=pb.OUTCOME_COMPLETED,
    started_unix_us=START_UNIX_US,
    ended_unix_us=START_UNIX_US + 1,
    report=REPORT,
)


@contextmanager
def serving(socket: Path, script: Script) -> Iterator[Script]:
    """Serve in a thread with a loop of its own, so that the command may be a process."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    ready = threading.Event()

    async def serve() -> None:
        async with fake_agent(socket, script):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(ENDED_SECONDS)
    try:
        yield script
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(ENDED_SECONDS)
        loop.close()


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PHAUL_", "COLUMNS", "LINES"))}
    return kept | {"PYTHONUTF8": "1", "TERM": "xterm"} | more


def phaul(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, without a terminal."""
    return subprocess.run(
        [*PHAUL, *arguments],
        capture_output=True,
        text=True,
        timeout=ENDED_SECONDS,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        check=False,
    )


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What --json printed; anything else on standard output fails."""
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def test_migrate_without_a_terminal(socket: Path) -> None:
    with serving(socket, Script(events=COMPLETED)) as script:
        done = phaul(
            "migrate",
            "4711",
            "--to",
            "b",
            "--address",
            "10.0.0.50/24@eth1",
            "--drop-unaccepted",
            "--socket",
            str(socket),
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert "[   154 ms] freeze" in done.stdout.splitlines()
    assert "✓ redis-server runs on b.example:7428 as PID 4711" in done.stdout.splitlines()
    assert "\x1b" not in done.stdout
    request = script.requests[0]
    assert (request.root_pid, request.destination, request.drop_unaccepted) == (4711, "b:7428", True)
    assert [(each.address, each.prefix_length, each.device) for each in request.addresses] == [
        ("10.0.0.50", 24, "eth1")
    ]


def test_migrate_json(socket: Path) -> None:
    with serving(socket, Script(events=COMPLETED)):
        done = phaul("migrate", "4711", "--to", "b", "--json", "--socket", str(socket))
    assert done.returncode == 0
    assert [each["sequence"] for each in objects(done)] == list(range(1, len(COMPLETED) + 1))
    assert objects(done)[-1]["event"] == "result"


def test_a_failed_migration(socket: Path) -> None:
    with serving(socket, Script(events=ROLLED_BACK)):
        done = phaul("migrate", "4711", "--to", "b", "--socket", str(socket))
        as_json = phaul("migrate", "4711", "--to", "b", "--json", "--socket", str(socket))
    assert done.returncode == as_json.returncode == 23
    assert "phaul: RestoreError: CRIU could not restore redis-server" in done.stderr
    assert "it runs: on the source, as before" in done.stderr
    last = objects(as_json)[-1]
    assert (last["event"], last["exit_status"], last["error"]["code"]) == ("result", 23, "RestoreError")


@pytest.mark.parametrize(("problems", "status"), [([REFUSAL, WARNING], 10), ([WARNING], 0), ([], 0)])
@pytest.mark.parametrize("words", [("check", "4711", "--to", "b"), ("migrate", "4711", "--to", "b", "--dry-run")])
def test_check(socket: Path, words: tuple[str, ...], problems: list[facts.Problem], status: int) -> None:
    check = facts.CheckReport(workload=facts.WorkloadFacts(root_pid=4711), problems=problems)
    with serving(socket, Script(check=check)) as script:
        done = phaul(*words, "--socket", str(socket))
        as_json = phaul(*words, "--json", "--socket", str(socket))
    assert done.returncode == as_json.returncode == status
    assert "Nothing was touched." in done.stdout
    (report,) = objects(as_json)
    assert (report["event"], report["may_go"], report["exit_status"]) == ("check", status == 0, status)
    assert [each["severity"] for each in report["problems"]] == [
        ["refuses", "warns"][each.severity - 1] for each in problems
    ]
    assert all(each["group"] for each in report["problems"])
    assert len(script.requests) == 2, "a dry run asks for nothing but the check"


def test_no_agent(socket: Path) -> None:
    done = phaul("migrate", "4711", "--to", "b", "--socket", str(socket))
    assert done.returncode == 11
    assert f"no phaul agent is running on this host (no socket at {socket})" in done.stderr
    assert "systemctl start phaul-agent" in done.stderr
    (error,) = objects(phaul("status", "--json", "--socket", str(socket)))
    assert (error["event"], error["exit_status"], error["error"]["code"]) == ("error", 11, "UnreachableError")


@pytest.mark.parametrize(
    "arguments",
    [
        ("migrate", "4711"),
        ("migrate", "0", "--to", "b"),
        ("migrate", "redis", "--to", "b"),
        ("migrate", "4711", "--to", "b:0"),
        ("migrate", "4711", "--to", "b", "--address", "here"),
        ("nonsense",),
    ],
)
def test_usage(arguments: tuple[str, ...]) -> None:
    assert phaul(*arguments).returncode == 2


def test_a_refusal_by_the_agent(socket: Path) -> None:
    with serving(socket, Script(fail=PreflightError("there is no process 4711", hint="See ps."))):
        done = phaul("migrate", "4711", "--to", "b", "--socket", str(socket))
    assert done.returncode == 10
    assert "there is no process 4711" in done.stderr


def test_an_agent_that_is_restarted_is_watched_on(socket: Path) -> None:
    with serving(socket, Script(events=COMPLETED, drop_after=4)) as script:
        done = phaul("watch", MIGRATION_ID, "--json", "--socket", str(socket))
        assert done.returncode == 2, "it is not in the list yet"
        script.migrations = [LISTED]
        done = phaul("watch", MIGRATION_ID[:4], "--socket", str(socket))
    assert done.returncode == 0
    assert script.watches == 2
    assert done.stdout.count("] preflight") == 1
    assert "trying again" in done.stdout


def test_status(socket: Path) -> None:
    with serving(socket, Script(migrations=[LISTED])):
        table = phaul("status", "--socket", str(socket))
        one = phaul("status", "m7", "--socket", str(socket))
        as_json = phaul("status", "--json", "--socket", str(socket))
        unknown = phaul("status", "x", "--socket", str(socket))
    assert "→ b" in table.stdout
    assert "312 ms" in table.stdout
    assert "Where the downtime went" in one.stdout
    assert objects(as_json)[0]["outcome"] == "completed"
    assert (table.returncode, one.returncode, as_json.returncode, unknown.returncode) == (0, 0, 0, 2)


@pytest.mark.parametrize(("accepted", "status"), [(True, 0), (False, 2)])
def test_cancel(socket: Path, accepted: bool, status: int) -> None:
    reply = pb.CancelMigrationReply(accepted=accepted, reason="" if accepted else "it is past COMMIT")
    with serving(socket, Script(migrations=[LISTED], cancel=reply)):
        assert phaul("cancel", MIGRATION_ID, "--socket", str(socket)).returncode == status


@pytest.mark.parametrize(("problems", "status"), [([REFUSAL], 10), ([WARNING], 0)])
def test_doctor(socket: Path, problems: list[facts.Problem], status: int) -> None:
    host = facts.HostFacts(host_name="a", criu_version="4.2.1", features=["lazy_pages"], problems=problems)
    with serving(socket, Script(host=host)):
        done = phaul("doctor", "--socket", str(socket))
        (report,) = objects(phaul("doctor", "--json", "--socket", str(socket)))
    assert done.returncode == report["exit_status"] == status
    assert "mem_track" in report["missing_features"]
    assert "lazy_pages" not in report["missing_features"]
    assert f"running at {socket}" in done.stdout


def test_version_and_help() -> None:
    assert phaul("--version").stdout == phaul("version").stdout == f"phaul {__version__}\n"
    text = phaul("migrate", "--help").stdout
    assert "Exit status" in text
    assert "--drop-unaccepted" in text


def test_a_pipe_that_breaks_is_no_error(socket: Path) -> None:
    migrations = [LISTED] * 3000
    with (
        serving(socket, Script(migrations=migrations)),
        subprocess.Popen(
            [*PHAUL, "status", "--json", "--socket", str(socket)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""


class Terminal:
    """A person at a terminal of 80 columns, running one command."""

    def __init__(self, *arguments: str) -> None:
        self._controller, terminal = pty.openpty()
        self._child = subprocess.Popen(
            [*PHAUL, *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment(COLUMNS="80", LINES="24"),
            start_new_session=True,
        )
        os.close(terminal)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + ENDED_SECONDS
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self._read()

    def interrupt(self) -> None:
        self._child.send_signal(signal.SIGINT)

    def terminate(self) -> None:
        self._child.send_signal(signal.SIGTERM)

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def exit_status(self) -> int:
        while self._read():
            pass
        os.close(self._controller)
        return self._child.wait(ENDED_SECONDS)

    def _read(self) -> bool:
        if not select.select([self._controller], [], [], ENDED_SECONDS)[0]:
            self._child.kill()
            pytest.fail(f"nothing more came after: {self.seen}")
        try:
            chunk = os.read(self._controller, 65536)
        except OSError:  # EIO: nobody holds the terminal any more
            return False
        self.seen += chunk.decode(errors="replace")
        return bool(chunk)


def test_ctrl_c_and_cancel(socket: Path) -> None:
    script = Script(events=COMPLETED, hold_after=7, cancel_events=[CANCELLED])
    with serving(socket, script):
        person = Terminal("migrate", "4711", "--to", "b", "--socket", str(socket))
        person.wait_for("200 MiB of 271 MiB")
        person.interrupt()
        person.wait_for("[c]ancel")
        person.type("c\n")
        assert person.exit_status() == 25
    assert "Cancelling" in person.seen
    assert "CancelledByUserError" in person.seen


def test_ctrl_c_and_go_on_watching(socket: Path) -> None:
    script = Script(events=COMPLETED, hold_after=7, cancel=pb.CancelMigrationReply(accepted=True))
    with serving(socket, script):
        person = Terminal("migrate", "4711", "--to", "b", "--socket", str(socket))
        person.wait_for("200 MiB of 271 MiB")
        person.interrupt()
        person.wait_for("[c]ancel")
        person.seen = ""
        person.type("w\n")
        person.wait_for("200 MiB of 271 MiB")
        script.released.set()
        person.interrupt()
        person.wait_for("[c]ancel")
        person.interrupt()
        assert person.exit_status() == 130
    assert f"phaul watch {MIGRATION_ID}" in person.seen
    assert not [each for each in script.requests if isinstance(each, pb.MigrationReference)][1:], (
        "nothing was cancelled"
    )


@pytest.mark.parametrize(
    ("flags", "shown", "last"),
    [
        ([], "200 MiB of 271 MiB", "goes on in the agent"),
        (["--json"], '"done_bytes": 209715200', '"event": "detached"'),
    ],
)
def test_sigterm_leaves_it_running(socket: Path, flags: list[str], shown: str, last: str) -> None:
    script = Script(events=COMPLETED, hold_after=7)
    with serving(socket, script):
        person = Terminal("migrate", "4711", "--to", "b", "--socket", str(socket), *flags)
        person.wait_for(shown)
        person.terminate()
        assert person.exit_status() == 128 + signal.SIGTERM
    assert last in person.seen


async def test_client_translates(socket: Path) -> None:
    async with fake_agent(socket, Script(events=COMPLETED)) as script, AgentClient(socket) as client:
        assert [each.sequence async for each in client.watch(MIGRATION_ID)] == list(range(1, len(COMPLETED) + 1))
        with pytest.raises(NoSuchMigrationError):
            await anext(client.watch("other"))
        script.fail = NotTrustedError("no", hint="h", detail="d")
        with pytest.raises(NotTrustedError) as raised:
            await client.list_migrations()
        assert (raised.value.hint, raised.value.detail) == ("h", "d")


async def test_client_without_a_listener(socket: Path) -> None:
    socket.touch()
    with pytest.raises(UnreachableError, match="nothing listens at"):
        async with AgentClient(socket):
            pass
