"""The move with `phaul migrate`, as a person types it on the source. Called by `tests.bench.__main__`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.criu_statistics import read_all
from tests.bench.moves import Move, Step
from tests.bench.scene import POLL_SECONDS, PREFIX, BenchError, Scene

STATE = "/var/lib/phaul/migrations"
LOADED_SECONDS = 60.0


def move(scene: Scene, pid: int, source: str, destination: str, options: Sequence[str] = ()) -> Move:
    """Move the workload. The time that the command needs to start is not counted: the agent does the work."""
    scene.mark()
    sent_before = [scene.sent_bytes(name) for name in (source, destination)]
    argv = ["phaul", "migrate", str(pid), "--to", destination, "--address", PREFIX, "--json", *options]
    output = scene.helpers[source].run(argv, "`phaul migrate`")["output"]
    sent_after = [scene.sent_bytes(name) for name in (source, destination)]
    silence = scene.silence()
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    report = events[-1].get("report")
    if not report:
        raise BenchError(f"phaul did not move the workload: {events[-1]}")
    start_us = _unix_us(events, "preflight")
    freeze_us = _unix_us(events, "freeze")
    migration_id = events[-1]["migration_id"]
    logs = [scene.lab.host(name).path(f"{STATE}/{migration_id}") for name in (source, destination)]
    _wait_loaded(logs[-1] / "loading")
    return Move(
        method="phaul",
        source=source,
        destination=destination,
        downtime_us=silence.gap_ns / 1000,
        total_us=max(report["total_us"], silence.first_after_ns / 1000 - start_us),
        sent_bytes=sum(sent_after) - sum(sent_before),
        reported_downtime_us=report["downtime_us"],
        steps=_steps(report, freeze_us - start_us),
        statistics=read_all(logs),
    )


def _wait_loaded(word: Path) -> None:
    """The next move, by whichever method, finds a workload that is whole. Where it was not restored lazily it is."""
    deadline = time.monotonic() + LOADED_SECONDS
    while word.exists() and word.read_text().split()[0] not in ("waiting", "done"):
        if time.monotonic() > deadline:
            raise BenchError(f"The workload's pages are not loaded after {LOADED_SECONDS:g} s.")
        time.sleep(POLL_SECONDS)


def _unix_us(events: list[dict[str, Any]], phase: str) -> int:
    return next(int(event["unix_us"]) for event in events if event.get("phase") == phase)


def _steps(report: dict[str, Any], freeze_us: int) -> tuple[Step, ...]:
    """The phases, and within FREEZE to RESUME the steps of the downtime."""
    steps = []
    start_us = 0
    for phase in report["phases"]:
        steps.append(Step(phase["phase"].upper(), start_us, phase["duration_us"]))
        start_us += phase["duration_us"]
    # The steps count from the freeze, which the report does not place within the phase FREEZE: it ends with the dump.
    dump_us = next((step["duration_us"] for step in report["steps"] if step["name"] == "dump"), 0)
    freeze_phase_us = next((phase["duration_us"] for phase in report["phases"] if phase["phase"] == "freeze"), 0)
    frozen_us = freeze_us + freeze_phase_us - dump_us
    for step in report["steps"]:
        name = f"{step['name']} ({step['host']})"
        steps.append(Step(name, frozen_us + step["start_us"], step["duration_us"]))
    return tuple(sorted(steps, key=lambda step: step.start_us))
