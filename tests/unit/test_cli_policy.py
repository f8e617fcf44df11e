"""`phaul policy` and `phaul audit`: what they show; and that `phaul trust` is in the audit log."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from phaul.cli.main import app
from phaul.errors import UsageError
from phaul.rpc.v1 import agent_pb2 as pb
from phaul.system.audit_file import append, read
from tests.unit.fake_agent import Script
from tests.unit.test_cli_commands import serving

RULES = '[peers]\nsend = []\n[limits]\nmemory = "2GiB"\n[[users]]\ngroups = ["ops"]\nunits = ["shop-*.service"]\n'


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"}, catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_file_is_checked_without_an_agent(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(RULES)
    shown = run("policy", "check", str(path))
    assert "is a right policy" in shown
    assert "2.0 GiB at most" in shown
    assert "no host" in shown
    assert "every trusted host" in shown
    assert "groups ops" in shown
    assert "in the units shop-*.service" in shown
    machine = json.loads(run("policy", "check", str(path), "--json"))
    assert machine["limits"] == {"memory": 2 << 30, "migrations": None}
    path.write_text("[peers]\nsends = []")
    refused = CliRunner().invoke(app, ["policy", "check", str(path), "--json"])
    assert refused.exit_code == UsageError.exit_status
    assert "peers.sends: there is no such entry" in json.loads(refused.stdout)["error"]["message"]


def test_what_is_in_force_and_why_the_file_is_not(tmp_path: Path) -> None:
    policy = {"peers": {"send": ["a"], "receive": None}, "limits": {"memory": None, "migrations": 4}, "users": []}
    report = pb.PolicyReport(
        path="/etc/p.toml", exists=True, problem="users: no [list]", policy=json.dumps(policy), audit_log="/x/audit"
    )
    with serving(tmp_path / "sock", Script(policy=report)):
        shown = run("policy", "show", "--socket", str(tmp_path / "sock"))
        machine = json.loads(run("policy", "show", "--json", "--socket", str(tmp_path / "sock")))
    assert "not in force: users: no [list]" in shown
    assert "[bold" not in shown
    assert "4 at most" in shown
    assert "/x/audit" in shown
    assert machine["problem"] == "users: no [list]"
    assert machine["peers"] == policy["peers"]


def test_the_audit_log_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    append(path, {"time": "2020-01-01T00:00:00+00:00", "event": "ancient", "who": "x", "outcome": "done"})
    append(
        path,
        {
            "time": "2999-01-01T00:00:00+00:00",
            "event": "migration.asked",
            "who": "al [bold]\x1b[31m (7)",
            "outcome": "denied",
            "addresses": ["10.0.0.1/24"],
        },
    )
    shown = run("audit", "--file", str(path), "--since", "1h")
    assert "migration.asked" in shown
    assert "al [bold]" in shown
    assert "\x1b[31m" not in shown  # what others have named is not obeyed
    assert "addresses 10.0.0.1/24" in shown
    assert "ancient" not in shown
    machine = [json.loads(line) for line in run("audit", "--file", str(path), "--json").splitlines()]
    assert [each["event"] for each in machine] == ["ancient", "migration.asked"]
    assert "There is nothing" in run("audit", "--file", str(tmp_path / "none.jsonl"))


def test_changes_of_trust_are_written_down(tmp_path: Path) -> None:
    state = ["--state-dir", str(tmp_path)]
    run("trust", "init", "a.example", "--also", "127.0.0.1", *state)
    run("trust", "issue", "b.example", "--also", "127.0.0.2", "--out", str(tmp_path / "out"), *state)
    run("trust", "revoke", "b.example", "--json", *state)
    run("trust", "rotate", "--json", *state)
    run("trust", "rotate", "--finish", "--yes", "--json", *state)
    found = list(read(tmp_path / "audit.jsonl"))
    assert [each["event"] for each in found] == [
        "trust.init", "trust.issue", "trust.revoke", "trust.rotate", "trust.rotate_finish",
    ]  # fmt: skip
    assert found[1]["host"] == "b.example"
    assert all(each["who"] for each in found)
