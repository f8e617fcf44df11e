"""`phaul dump` and `phaul restore` against an agent that follows a script: what is asked, shown, and exited with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phaul.errors import NotRestoredError
from phaul.rpc.v1 import agent_pb2 as pb
from phaul.rpc.v1 import facts_pb2
from tests.unit.fake_agent import MIGRATION_ID, Script
from tests.unit.test_cli_commands import phaul, serving


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def event(number: int, **kind: object) -> pb.MigrationEvent:
    return pb.MigrationEvent(migration_id=MIGRATION_ID, sequence=number, unix_us=number * 1000, **kind)  # type: ignore[arg-type]


EVENTS = [
    event(1, started=pb.Started(root_pid=4711, destination="directory:/d")),
    event(2, started=pb.Started(root_pid=4711, command="web", processes=2, memory_bytes=1 << 20, connections=3)),
    event(3, warning=pb.Warning(message="3 TCP connections will end with the workload")),
    event(
        4,
        finished=pb.Finished(
            outcome=pb.OUTCOME_COMPLETED, report=pb.MigrationReport(memory_bytes=1 << 20, freeze_us=5000)
        ),
    ),
]
RESTORED = [
    pb.RestoreDumpEvent(begun=pb.RestoreBegun(migration_id="0badcafe", command="web", host_name="a", bytes=1 << 20)),
    pb.RestoreDumpEvent(warning=pb.Warning(message="its log goes on in another file")),
    pb.RestoreDumpEvent(restored=pb.RestoredDump(pid=4711, duration_us=120_000)),
]


def test_a_dump_is_asked_for_and_told(socket: Path, tmp_path: Path) -> None:
    script = Script(events=EVENTS)
    with serving(socket, script):
        ended = phaul("dump", "4711", "--to", str(tmp_path / "x" / ".." / "d"), "--socket", str(socket))
        left = phaul("dump", "4711", "--to", "/d", "--leave-running", "--freeze-timeout", "2s", "--socket", str(socket))
        told = phaul("dump", "4711", "--to", "/d", "--json", "--socket", str(socket))
    assert (ended.returncode, left.returncode, told.returncode) == (0, 0, 0)
    asked = [each for each in script.requests if isinstance(each, facts_pb2.MigrationRequest)]
    assert asked[0].destination == f"directory:{tmp_path}/d"
    assert (asked[0].mode, asked[0].leave_running) == (facts_pb2.MODE_STOP_AND_COPY, False)
    assert (asked[1].leave_running, asked[1].freeze_timeout_seconds) == (True, 2.0)
    assert "Dumping web (PID 4711): 2 processes" in ended.stdout
    assert "3 TCP connections will end" in ended.stdout
    assert f"web is in {tmp_path}/d" in ended.stdout
    assert "it has ended" in ended.stdout
    assert "phaul restore /d" in left.stdout
    assert "runs on; it stood still for 5.0 ms" in left.stdout
    assert json.loads(told.stdout.splitlines()[-1])["event"] == "result"


def test_a_restore_is_asked_for_and_told(socket: Path, tmp_path: Path) -> None:
    script = Script(restore_events=RESTORED)
    identity = ["--new-address", "10.0.0.5=10.0.0.6", "--new-mac", "02:00:00:00:00:06", "--hostname", "web2"]
    with serving(socket, script):
        done = phaul("restore", str(tmp_path), *identity, "--socket", str(socket))
        told = phaul("restore", str(tmp_path), "--json", "--socket", str(socket))
    assert (done.returncode, told.returncode) == (0, 0), done.stderr
    (asked, _) = script.requests
    assert (asked.directory, asked.host_name) == (str(tmp_path), "web2")
    assert (asked.new_addresses[0].new, asked.new_macs[0].mac) == ("10.0.0.6", "02:00:00:00:00:06")
    assert "Restoring web from" in done.stdout
    assert "its log goes on" in done.stdout
    assert "web runs as PID 4711, after 120 ms" in done.stdout
    assert [json.loads(line)["event"] for line in told.stdout.splitlines()] == ["begun", "warning", "result"]


def test_what_went_wrong_is_the_exit_status(socket: Path, tmp_path: Path) -> None:
    with serving(socket, Script(fail=NotRestoredError("CRIU could not restore the workload"))):
        done = phaul("restore", str(tmp_path), "--socket", str(socket))
        told = phaul("restore", str(tmp_path), "--json", "--socket", str(socket))
    assert (done.returncode, told.returncode) == (15, 15)
    assert "CRIU could not restore" in done.stderr
    assert json.loads(told.stdout)["error"]["code"] == "NotRestoredError"
    with serving(socket, Script(restore_events=RESTORED[:2])):
        assert phaul("restore", str(tmp_path), "--socket", str(socket)).returncode == 70


@pytest.mark.parametrize(
    "words",
    [
        ("dump", "4711"),
        ("dump", "4711", "--to", "/d", "--freeze-timeout", "soon"),
        ("restore",),
        ("restore", "/", "--hostname", "-"),
        ("restore", "/", "--new-address", "10.0.0.5"),
    ],
)
def test_what_cannot_be_meant_is_refused(socket: Path, words: tuple[str, ...]) -> None:
    if "--freeze-timeout" in words or "--hostname" in words:
        told = phaul(*words, "--json", "--socket", str(socket))
        assert json.loads(told.stdout)["error"]["code"] == "UsageError"
    assert phaul(*words, "--socket", str(socket)).returncode == 2
