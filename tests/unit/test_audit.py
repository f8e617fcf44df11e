"""The audit log: on the disk at once, never cut, read across a rotation; and who is at the other end of a socket."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from phaul.agent.audit import Audit, record_of
from phaul.cli.audit import parse_since
from phaul.errors import UsageError
from phaul.migration.policy import Belonging
from phaul.rpc.v1 import agent_pb2, facts_pb2
from phaul.system import credentials
from phaul.system.audit_file import AuditError, append, read
from phaul.workloads import belongings

NOW = datetime.datetime(2026, 11, 21, 12, 0, tzinfo=datetime.UTC)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_what_is_written_is_there_at_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log" / "audit.jsonl"
    audit = Audit(path)
    await audit.write("migration.asked", "alice (1000)", "allowed", root_pid=7, reason="")
    assert lines(path)[0] | {"time": ""} == {
        "time": "", "event": "migration.asked", "who": "alice (1000)", "outcome": "allowed", "root_pid": 7,
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for number in range(20):
        audit.note("look", "x", "denied", number=number + 1)
    await audit.close()
    assert [each.get("number") for each in lines(path)] == [None, *range(1, 21)]


async def test_what_others_repeat_is_counted(tmp_path: Path) -> None:
    now = 0.0
    audit = Audit(tmp_path / "audit.jsonl", lambda: now)
    for _ in range(1000):
        audit.note_repeated("connection", "10.0.0.1", "refused", reason="revoked")
        audit.note_repeated("connection", "10.0.0.2", "refused", reason="revoked")
    now = 61.0
    audit.note_repeated("connection", "10.0.0.1", "refused", reason="revoked")
    for number in range(5000):  # whoever calls himself something else each time
        audit.note_repeated("connection", f"host {number}", "refused")
    assert len(audit._repeated) <= 1024
    await audit.close()
    found = lines(tmp_path / "audit.jsonl")
    assert [each.get("times") for each in found if each["who"] == "10.0.0.1"] == [None, 1000]
    assert [each.get("times") for each in found if each["who"] == "10.0.0.2"] == [None, 999]


async def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    audit = Audit(tmp_path)  # a directory
    with pytest.raises(AuditError, match="could not be written"):
        await audit.write("migration.asked", "x", "allowed")
    await audit.close()


def test_it_may_be_renamed_and_packed_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    append(path, {"n": 1})
    with gzip.open(tmp_path / "audit.jsonl-20261101.gz", "wb") as packed:
        packed.write(path.read_bytes())
    os.utime(tmp_path / "audit.jsonl-20261101.gz", (1, 1))
    path.unlink()
    append(path, {"n": 2})
    path.rename(tmp_path / "audit.jsonl.1")
    os.utime(tmp_path / "audit.jsonl.1", (2, 2))
    append(path, {"n": 3})
    (tmp_path / "audit.jsonl.lock").mkdir()
    (tmp_path / "audit.jsonl.lock").rmdir()
    assert [each["n"] for each in read(path)] == [1, 2, 3]


def test_a_line_that_a_crash_has_cut_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    append(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "cut')
    append(path, {"n": 3})
    assert [each["n"] for each in read(path)] == [1, 3]


def test_no_link_is_followed_and_nothing_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditError):
        append(tmp_path / "audit.jsonl", {"n": 1})
    assert not (tmp_path / "elsewhere").exists()
    assert len(str(record_of("x", "y", "z", reason="r" * 100_000)["reason"])) == 500


async def test_how_a_migration_ended(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    summary = agent_pb2.MigrationSummary(
        migration_id="0badcafe", role=agent_pb2.ROLE_SOURCE, outcome=agent_pb2.OUTCOME_ROLLED_BACK, asked_by="al (7)",
        error=facts_pb2.ErrorInfo(code="DumpError", message="no"),
    )  # fmt: skip
    audit.migration(summary)
    await audit.close()
    (record,) = lines(tmp_path / "audit.jsonl")
    assert (record["outcome"], record["error"], record["who"], record["role"]) == (
        "rolled_back", "DumpError", "al (7)", "source",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "hours"),
    [("24h", 24), ("7d", 7 * 24), ("30m", 0.5), ("2026-11-21T10:00:00+00:00", 2)],
)
def test_since(text: str, hours: float) -> None:
    assert parse_since(text, NOW) == NOW - datetime.timedelta(hours=hours)


@pytest.mark.parametrize("text", ["yesterday", "99999999999999d", "1e999d", ""])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        parse_since(text, NOW)


def test_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair()
    with one, other:
        who = credentials.of_peer(one)
    assert who.pid == os.getpid()
    assert who.user_id == os.geteuid()
    assert set(who.group_ids) == {os.getegid(), *os.getgroups()}
    assert who.may_all
    assert not credentials.Credentials(1, os.geteuid() + 4711, ()).may_all


async def test_what_a_tree_belongs_to(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        async with asyncio.timeout(30):
            while len(found := belongings.of_tree(process.pid)) < 2:
                await asyncio.sleep(0.02)
        process.communicate(b"\n")
    own = Path("/proc/self/exe").resolve()
    assert [each.executable for each in found] == [str(own), str(own)]
    assert all(str(os.getuid()) in each.owners for each in found)
    assert found[0].cgroup == belongings._control_group(os.getpid())
    assert belongings.of_tree(process.pid) == ()


def test_units_are_read_out_of_the_control_group() -> None:
    found = Belonging(1, frozenset(), "/system.slice/system-shop.slice/shop@1.service/payload", "")
    assert found.units == ("system.slice", "system-shop.slice", "shop@1.service")


def test_a_file_that_was_deleted_or_is_not_the_one_named_is_no_executable(tmp_path: Path) -> None:
    copy = tmp_path / "sleeper"
    copy.write_bytes(Path("/bin/sleep").read_bytes())
    copy.chmod(0o755)
    with subprocess.Popen([str(copy), "60"]) as process:
        try:
            assert belongings.of_tree(process.pid)[0].executable == str(copy)
            copy.unlink()
            assert belongings.of_tree(process.pid)[0].executable == ""
            copy.write_bytes(b"")
            assert belongings.of_tree(process.pid)[0].executable == ""
        finally:
            process.kill()
