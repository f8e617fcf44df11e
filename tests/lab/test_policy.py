"""The policy on real hosts: a user of one of them, as the kernel knows them, and what both audit logs then say."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from phaul.lab.host import Host

from .moves import migrate
from .stage import Stage
from .witness import wait_until

USER = 65534
NOT_TRUSTED_STATUS, POLICY_STATUS = 12, 13
POLICY = "/etc/phaul/policy.toml"
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
# phaul may lie where only root may read. Connecting to the socket needs the right to write, which this does not give.
READING = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@pytest.fixture
def governed(stage: Stage) -> Iterator[Stage]:
    """A policy may be put on the hosts; afterwards there is none."""
    yield stage
    for host in (stage.a, stage.b):
        host.path(POLICY).unlink(missing_ok=True)
        wait_until(lambda host=host: _mode(host) == 0o600, "the policy is not forgotten")  # type: ignore[misc]


def _mode(host: Host) -> int:
    return stat.S_IMODE(host.path("/run/phaul/agent.sock").stat().st_mode)


def govern(host: Host, text: str) -> None:
    path = host.path(POLICY)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.rename(path)


def as_user(stage: Stage, *words: str) -> tuple[int, dict[str, Any]]:
    """What a command of the user's ended with, and the last that it said."""
    process = stage.a.popen([*AS_USER, *READING, "phaul", *words, "--json"], stderr=subprocess.PIPE)
    out, complaint = process.communicate(timeout=90)
    lines = out.splitlines()
    assert lines, complaint
    return process.returncode, json.loads(lines[-1])


def audited(host: Host, **wanted: object) -> list[dict[str, Any]]:
    records = map(json.loads, host.exec(["phaul", "audit", "--json"]).stdout.splitlines())
    return [record for record in records if wanted.items() <= record.items()]


def test_a_user_may_migrate_what_a_rule_names_and_no_more(governed: Stage) -> None:
    stage = governed
    named = stage.start("ticker")
    other = stage.spawn(["sleep", "600"])
    migrating = ("migrate", str(named), "--to", "b")
    assert _mode(stage.a) == 0o600
    status, last = as_user(stage, *migrating)
    assert status == NOT_TRUSTED_STATUS, last

    executable = stage.a.exec(["readlink", f"/proc/{named}/exe"]).stdout.strip()
    govern(stage.a, f'[[users]]\nusers = ["{USER}"]\nowners = ["root"]\nexecutables = ["{executable}"]\n')
    wait_until(lambda: _mode(stage.a) == 0o666, "the policy is not taken up")
    status, last = as_user(stage, "migrate", str(other), "--to", "b")
    assert status == POLICY_STATUS, last
    assert last["error"]["code"] == "PolicyError"
    assert "/sleep" in last["error"]["message"]
    status, last = as_user(stage, *migrating, "--address", stage.ip4)
    assert status == POLICY_STATUS, last
    assert "move the address" in last["error"]["message"]
    assert stage.a.running(other)

    status, last = as_user(stage, *migrating)
    assert status == 0, last["error"]
    assert stage.b.running(named)
    assert not stage.a.running(named)
    (ended,) = audited(stage.a, event="migration.ended", outcome="completed", root_pid=named)
    status, last = as_user(stage, "resolve", ended["migration_id"])
    assert status == POLICY_STATUS, last
    (refusal,) = audited(stage.a, event="migration.asked", outcome="denied", root_pid=other)
    assert refusal["user_id"] == USER
    assert ended["who"].endswith(f"({USER})")
    (arrived,) = audited(stage.b, event="migration.ended", outcome="completed", root_pid=named)
    assert arrived["migration_id"] == ended["migration_id"]
    assert arrived["who"].startswith("a at ")


@pytest.mark.parametrize(
    ("host", "text", "said"),
    [
        ("a", '[peers]\nreceive = ["c"]', "this host may not send workloads to b"),
        ("b", '[peers]\nsend = ["c"]', "that host may not send workloads to this one"),
        ("b", '[limits]\nmemory = "64KiB"', "allows 64 KiB"),
    ],
)
def test_a_policy_on_either_host(governed: Stage, host: str, text: str, said: str) -> None:
    stage = governed
    pid = stage.start("ticker")
    govern(stage.lab.host(host), text)
    wait_until(lambda: json.loads(_shown(stage.lab.host(host)))["exists"], "the policy is not taken up")
    error = stage.refused(pid, code="PolicyError")
    assert said in error["message"]
    stage.lab.host(host).path(POLICY).unlink()
    wait_until(lambda: not json.loads(_shown(stage.lab.host(host)))["exists"], "the policy is not forgotten")
    assert migrate(stage.a, pid, "b").status == 0


def _shown(host: Host) -> str:
    return host.exec(["phaul", "policy", "show", "--json"]).stdout
