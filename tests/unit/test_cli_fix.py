"""`phaul doctor --fix` against an agent that follows a script: what is asked of it, shown and exited with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phaul.rpc.v1 import agent_pb2 as pb
from tests.unit.fake_agent import Script
from tests.unit.test_cli_commands import phaul, serving

FENCE = pb.Leftover(kind="fence", migration_id="0badcafe", what="the packet filter tables phaul-0badcafe")
FAILED = pb.Leftover(kind="fence", migration_id="0badcafe", what=FENCE.what, problem="nft refused")


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def asked(script: Script) -> list[str]:
    return [type(request).__name__ for request in script.requests]


def test_nothing_is_removed_without_a_yes(socket: Path) -> None:
    script = Script(leftovers=[FENCE], removed=[FENCE])
    with serving(socket, script):
        done = phaul("doctor", "--fix", "--socket", str(socket))
        told = json.loads(phaul("doctor", "--fix", "--json", "--socket", str(socket)).stdout)
    assert done.returncode == told["exit_status"] == 30
    assert "phaul-0badcafe (migration 0badcafe)" in done.stdout
    assert (len(told["found"]), told["removed"]) == (1, [])
    assert asked(script) == ["LeftoversRequest", "LeftoversRequest"]


@pytest.mark.parametrize(("removed", "status"), [(FENCE, 0), (FAILED, 30)])
def test_yes_removes_and_says_what_could_not_be(socket: Path, removed: pb.Leftover, status: int) -> None:
    script = Script(leftovers=[FENCE], removed=[removed])
    with serving(socket, script):
        done = phaul("doctor", "--fix", "--yes", "--socket", str(socket))
        told = json.loads(phaul("doctor", "--fix", "--yes", "--json", "--socket", str(socket)).stdout)
    assert done.returncode == told["exit_status"] == status
    assert ("nft refused" if status else "removed: ") in done.stdout
    assert told["removed"][0]["problem"] == removed.problem


def test_nothing_left_is_said_and_fine(socket: Path) -> None:
    with serving(socket, Script()):
        done = phaul("doctor", "--fix", "--yes", "--socket", str(socket))
    assert (done.returncode, "Nothing is left" in done.stdout) == (0, True)
    gone = phaul("doctor", "--fix", "--socket", str(socket))
    assert gone.returncode == 11
