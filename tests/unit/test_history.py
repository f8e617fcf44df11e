"""The records that `phaul status` shows: kept over the life of an agent, and never in the way of a migration."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.agent.history import SHOWN, History
from phaul.errors import NoSuchMigrationError, TransferError
from phaul.migration.events import MigrationReport, Outcome, Phase, PhaseDuration, Role
from phaul.rpc.v1 import agent_pb2

REPORT = MigrationReport(
    new_pid=7,
    downtime_us=10,
    freeze_us=11,
    total_us=12,
    memory_bytes=13,
    image_bytes=14,
    phases=(PhaseDuration(Phase.FREEZE, 5),),
    steps=(),
    warnings=("careful",),
    processes=1,
    connections=2,
    addresses=("10.0.0.5/24@eth0",),
)


def test_a_record_outlives_the_agent(tmp_path: Path) -> None:
    history = History(tmp_path / "state")
    history.begin("ab12", Role.SOURCE, "b:7428", 7, "")
    history.describe("ab12", "redis-server")
    history.enter("ab12", Phase.FREEZE)
    assert history.get("ab12").phase == agent_pb2.PHASE_FREEZE
    assert history.get("ab12").outcome == agent_pb2.OUTCOME_RUNNING
    history.end("ab12", Outcome.COMPLETED, report=REPORT)
    record = History(tmp_path / "state").get("ab12")
    assert record == history.get("ab12")
    assert (record.role, record.peer, record.root_pid, record.command) == (
        agent_pb2.ROLE_SOURCE,
        "b:7428",
        7,
        "redis-server",
    )
    assert record.report.phases[0].duration_us == 5
    assert record.ended_unix_us >= record.started_unix_us > 0
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_an_error_is_kept_whole(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.begin("ab12", Role.DESTINATION, "a", 7, "x")
    error = TransferError("it broke", hint="h", detail="d")
    error.add_note("left")
    history.end("ab12", Outcome.ROLLED_BACK, error=error)
    kept = History(tmp_path).get("ab12").error
    assert (kept.code, kept.message, kept.hint, kept.detail, list(kept.notes)) == (
        "TransferError",
        "it broke",
        "h",
        "d",
        ["left"],
    )


def test_a_command_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.begin("ab12", Role.DESTINATION, "a", 7, os.fsdecode(b"caf\xe9"))
    history.describe("ab12", os.fsdecode(b"th\xe9"))
    history.end("ab12", Outcome.COMPLETED)
    assert History(tmp_path).get("ab12").command.startswith("th")


def test_the_beginning_of_an_id_will_do_where_it_is_the_only_one(tmp_path: Path) -> None:
    history = History(tmp_path)
    for migration_id in ("ab12", "ab13", "cd14", "cd"):
        history.begin(migration_id, Role.SOURCE, "b", 7, "")
    assert history.get("ab13").migration_id == "ab13"
    assert history.get("cd1").migration_id == "cd14"
    assert history.get("cd").migration_id == "cd", "a whole ID comes first"
    with pytest.raises(NoSuchMigrationError, match="begins the IDs of 2 migrations"):
        history.get("ab")
    for unknown in ("", "x", "ab123"):
        with pytest.raises(NoSuchMigrationError, match="there is no migration"):
            history.get(unknown)


def test_the_newest_come_first_and_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1, 10_000))
    monkeypatch.setattr("phaul.agent.history._now_us", lambda: next(now))
    history = History(tmp_path)
    for number in range(SHOWN + 5):
        history.begin(f"{number:04}", Role.SOURCE, "b", 7, "")
    shown = [record.migration_id for record in history.newest_first()]
    assert shown == [f"{number:04}" for number in range(SHOWN + 4, 4, -1)]
    assert [record.migration_id for record in History(tmp_path).newest_first()] == shown


@given(content=st.binary(max_size=100) | st.sampled_from([b"[]", b"1", b'{"outcome": "NEW"}', b'{"root_pid": {}}']))
def test_a_record_that_cannot_be_read_is_passed_over(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("state")
    History(directory).begin("good", Role.SOURCE, "b", 7, "")
    (directory / "bad").mkdir()
    (directory / "bad/summary.json").write_bytes(content)
    assert History(directory).get("good").root_pid == 7


def test_a_record_of_a_newer_phaul_is_read(tmp_path: Path) -> None:
    (tmp_path / "ab12").mkdir()
    (tmp_path / "ab12/summary.json").write_text('{"migration_id": "ab12", "later": 1}')
    assert History(tmp_path).get("ab12").migration_id == "ab12"


def test_a_disk_that_cannot_be_written_changes_no_migration(tmp_path: Path) -> None:
    history = History(tmp_path)
    (tmp_path / "ab12").write_text("a file in the way")
    history.begin("ab12", Role.SOURCE, "b", 7, "")
    history.end("ab12", Outcome.COMPLETED, report=REPORT)
    assert history.get("ab12").outcome == agent_pb2.OUTCOME_COMPLETED
