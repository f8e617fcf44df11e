"""`phaul demo` with real CRIU: the verdict holds, and it is one that can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from phaul.lab import records
from phaul.lab.cluster import Lab
from phaul.lab.demo import ADDRESS, Demo
from phaul.lab.host import Host

from .conftest import unique_name


def run_quietly(host: Host, argv: Sequence[str]) -> int:
    done = host.exec(argv, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.returncode


def test_the_demonstration_holds_and_leaves_nothing() -> None:
    name = unique_name("demo")
    argv = [sys.executable, "-c", "from phaul.cli.main import main; main()", "demo", "--mib", "16", "--name", name]
    done = subprocess.run([*argv, "--json"], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["holds"]
    assert [check["name"] for check in found["checks"] if not check["holds"]] == []
    assert (found["lost"], found["resets"], found["blocks"]) == (0, 0, 256)
    assert min(found["operations"].values()) > 0
    for move in found["moves"]:
        assert move["leftovers"] == []
        # The client waits at least as long as Redis is stopped, and not for seconds.
        assert move["report"]["downtime_us"] * 0.9 < move["longest_gap_us"] < 5_000_000
    assert not list(records.STATE_ROOT.glob(f"{name}*"))


def test_the_verdict_sees_a_lost_value_and_traces() -> None:
    with Lab.up(unique_name("flawed")) as lab:
        demo = Demo(lab, mib=1)
        try:
            demo.prepare()
            destination = lab.host("b")
            demo.move("a", "b", run_quietly)
            lab.host("a").exec(["nft", "add", "table", "inet", "left-behind"])
            destination.exec(["redis-cli", "-h", ADDRESS, "del", "block:3"])
            demo.move("b", "a", run_quietly)
            verdict = demo.judge()
        finally:
            demo.close()
        assert not verdict.holds
        assert [check.name for check in verdict.checks if not check.holds] == ["values lost", "traces left"]
        assert verdict.lost == 1
        assert "left-behind" in verdict.checks[-1].detail
