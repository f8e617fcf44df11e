"""What a person sees, at 80 columns, in Unicode and in ASCII; and what a program reads."""

from __future__ import annotations

import io
import json
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from phaul.cli import display
from phaul.cli.check import check_report
from phaul.cli.console import ASCII, STAND_IN, UNICODE, clean, clean_block, glyphs_for
from phaul.cli.doctor import Findings, report
from phaul.cli.failure import failure_panel, failure_text
from phaul.cli.machine import error_object, event_object
from phaul.cli.status import migration_table
from phaul.cli.view import MigrationView, advance
from phaul.errors import PreflightError, RestoreError
from phaul.rpc.v1 import agent_pb2 as pb
from phaul.rpc.v1 import facts_pb2 as facts
from phaul.system.memory import huge_tmpfs_allowed
from tests.unit.fake_agent import COMPLETED, MIB, REPORT, ROLLED_BACK, START_UNIX_US, event

COLUMNS = 80


def render(renderable: RenderableType, *, encoding: str = "utf-8", keep_blanks: bool = False) -> list[str]:
    """Print without colour; gives the lines, without the blanks at their ends unless asked for."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=STAND_IN)
    console = Console(file=stream, width=COLUMNS, color_system=None, highlight=False, emoji=False, markup=False)
    console.print(renderable)
    stream.flush()
    stream.seek(0)
    return [line if keep_blanks else line.rstrip() for line in stream.read().splitlines()]


def view_after(count: int) -> MigrationView:
    return reduce(advance, COMPLETED[:count], MigrationView())


def test_live() -> None:
    assert render(display.live(view_after(7), START_UNIX_US + 400_000, UNICODE)) == [
        "  Moving redis-server (PID 4711) → b.example:7428",
        "  1 process · 271 MiB of memory · 1 connection · migration m7f3a9c2",
        "",
        "  ✓  preflight       120 ms",
        "  ✓  prepare          34 ms",
        "  ⠼  freeze          246 ms",
        "  ·  transfer",
        "  ·  restore",
        "  ·  switchover",
        "  ·  commit",
        "  ·  resume",
        "  ·  cleanup",
        "",
        "  memory ━━━━━━━━━━━━━━━━━━━━━━━━━━╸          74%",
        "         200 MiB of 271 MiB · 1.2 GiB/s · 59 ms left",
        "  elapsed 400 ms · Ctrl-C asks what to do",
    ]


def test_live_never_fills_the_line() -> None:
    """The echo of Ctrl-C would begin a new line there, which the display does not know of."""
    assert (
        max(len(line) for line in render(display.live(view_after(7), START_UNIX_US, UNICODE), keep_blanks=True))
        < COLUMNS
    )


def test_live_in_ascii() -> None:
    lines = render(display.live(view_after(7), START_UNIX_US, ASCII), encoding="ascii")
    assert lines[0] == "  Moving redis-server (PID 4711) -> b.example:7428"
    assert all(line.isascii() for line in lines)


def test_summary() -> None:
    assert render(display.summary(view_after(len(COMPLETED)), UNICODE)) == [
        "✓ redis-server runs on b.example:7428 as PID 4711",
        "",
        "  downtime      312 ms  source stopped until destination ran",
        "  freeze time   298 ms  tasks stopped on the source",
        "  total time    1.02 s  from preflight until it ran",
        "  sent         272 MiB  memory 271 MiB, other images 1.2 MiB",
        "  moved                 1 process · 1 connection · 10.0.0.50/24@eth0",
        "",
        "  preflight 120 ms · prepare 34 ms · freeze 201 ms · transfer 12 ms",
        "  restore 61 ms · switchover 21 ms · commit 3.0 ms · resume 15 ms",
        "  cleanup 563 ms",
        "",
        "  Where the downtime went (312 ms)",
        "  dump           source      ████████████████████████             201 ms",
        "  send images    source                             ██             12 ms",
        "  restore        destination                         ████████      60 ms",
        "  move addresses source                                     ███    21 ms",
        "  resume         destination                                   ██  14 ms",
        "",
        "  ! 2 connections waited in a listen queue",
    ]


def test_summary_in_ascii() -> None:
    assert all(line.isascii() for line in render(display.summary(view_after(len(COMPLETED)), ASCII), encoding="ascii"))


def test_plain_lines() -> None:
    lines: list[str] = []
    view = MigrationView()
    for each in ROLLED_BACK:
        before, view = view, advance(view, each)
        lines += display.plain_lines(before, view, each, UNICODE)
    assert lines == [
        "Moving redis-server (PID 4711) → b.example:7428, migration m7f3a9c2",
        "[     0 µs] preflight",
        "[   110 ms] 1 process · 271 MiB of memory · 1 connection",
        "[   120 ms] prepare",
        "[   154 ms] freeze",
        "[   355 ms] transfer",
        "[   367 ms] restore",
    ]
    at = START_UNIX_US + 350_000
    line = "[   350 ms] memory 74% · 200 MiB of 271 MiB · 1.2 GiB/s · 59 ms left"
    assert display.progress_line(view_after(7), at, UNICODE) == line


def test_failure_panel() -> None:
    view = reduce(advance, ROLLED_BACK, MigrationView())
    assert view.error is not None
    lines = render(failure_panel(view.error))
    assert lines[0].startswith("╭─ RestoreError ─")
    assert lines[-1].endswith("─ exit status 23 ─╯")
    assert {len(line) for line in lines} == {COLUMNS}
    text = " ".join(line.strip("│ ") for line in lines)
    for part in (
        "the file /usr/lib/libssl.so.3 is missing on b.example",
        "It runs  on the source, as before",
        "Do next  Install the same openssl there",
        "While undoing: - the address could not be taken back",
        "Can't open file libssl.so.3",
    ):
        assert part in text


def test_failure_as_plain_lines() -> None:
    error = PreflightError("there is no process 4711", hint="See `ps`.", detail="a\nb")
    assert failure_text(error).splitlines() == [
        "phaul: PreflightError: there is no process 4711",
        "  it runs: on the source; it was never touched",
        "  do next: See `ps`.",
        "  | a",
        "  | b",
    ]


def test_a_long_detail_is_cut() -> None:
    lines = failure_text(RestoreError("no", detail="\n".join(map(str, range(50))))).splitlines()
    assert lines[-1] == "  | (30 more lines)"


def test_nothing_from_outside_steers_the_terminal() -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\u202e"
    view = advance(MigrationView(), event(1, 0, started=pb.Started(root_pid=1, command=evil, destination=evil)))
    done = event(2, 1, finished=pb.Finished(outcome=pb.OUTCOME_COMPLETED, report=REPORT))
    error = RestoreError(evil, hint=evil, detail=evil)
    error.add_note(evil)
    shown = [
        *render(display.live(view, START_UNIX_US, UNICODE)),
        *render(display.summary(advance(view, done), UNICODE)),
        *render(failure_panel(error)),
        failure_text(error),
    ]
    assert not {"\x1b", "\x07", "\u202e"} & set("".join(shown))


def test_markup_in_a_name_is_shown_as_it_is() -> None:
    started = pb.Started(root_pid=1, command="[red]x[/]", destination="b")
    view = advance(MigrationView(), event(1, 0, started=started))
    assert "Moving [red]x[/] (PID 1)" in render(display.live(view, START_UNIX_US, UNICODE))[0]


def test_status_table_fits_80_columns() -> None:
    started = START_UNIX_US
    migrations = (
        pb.MigrationSummary(
            migration_id="m7f3a9c2",
            role=pb.ROLE_SOURCE,
            peer="b:7428",
            root_pid=4711,
            command="redis-server",
            phase=pb.PHASE_FREEZE,
            outcome=pb.OUTCOME_RUNNING,
            started_unix_us=started,
        ),
        pb.MigrationSummary(
            migration_id="m1110001",
            role=pb.ROLE_DESTINATION,
            peer="a-host-with-a-long-name.example.org",
            root_pid=4194304,
            command="a-very-long-command-name",
            outcome=pb.OUTCOME_COMPLETED,
            started_unix_us=started,
            ended_unix_us=started + 1,
            report=REPORT,
        ),
    )
    lines = render(migration_table(migrations, started // 1_000_000 + 90_000, UNICODE))
    assert lines[0].split() == ["ID", "WHEN", "PEER", "PID", "COMMAND", "STATE", "DOWN", "TOTAL"]
    assert lines[1].split()[2:5] == ["→", "b", "4711"]
    assert "m1110001" in lines[2]
    assert "← a-host" in lines[2]
    assert lines[2].endswith("completed  312 ms  1.02 s")
    assert len(lines) == 3
    assert max(map(len, lines)) <= COLUMNS


def test_check_report() -> None:
    report = facts.CheckReport(
        source=facts.HostFacts(host_name="a", phaul_version="1", criu_version="4.2.1", criu_path="/usr/sbin/criu"),
        destination=facts.HostFacts(host_name="b", phaul_version="1"),
        workload=facts.WorkloadFacts(
            root_pid=4711,
            tasks=[facts.TaskFacts(pid=4711, command="redis-server")],
            memory_bytes=271 * MIB,
            connections=[
                facts.ConnectionFacts(
                    protocol="tcp",
                    state="established",
                    local_address="fd00::5",
                    local_port=6379,
                    remote_address="fd00::9",
                    remote_port=41234,
                )
            ],
        ),
        problems=[
            facts.Problem(code="file_content", message="it may be slow", severity=facts.SEVERITY_WARNS),
            facts.Problem(
                code="criu_missing",
                message="there is no CRIU on b",
                hint="Install it.",
                severity=facts.SEVERITY_REFUSES,
            ),
        ],
        fine=["numbers: all 3 are free on b"],
        expected_downtime_us=45_000,
    )
    lines = render(check_report(report, UNICODE))
    assert lines[:3] == [
        "redis-server (PID 4711)",
        "1 process · 271 MiB of memory · 1 connection · 0 files",
        "  tcp [fd00::5]:6379 with [fd00::9]:41234, established",
    ]
    assert lines[lines.index("Refused → The hosts") :] == [
        "Refused → The hosts",
        "  ✗ there is no CRIU on b",
        "    → Install it.",
        "",
        "Warnings → Its files",
        "  ! it may be slow",
        "",
        "Fine",
        "  ✓ numbers: all 3 are free on b",
        "",
        "Expected downtime: about 45 ms; less with pre-copy.",
        "Refused: 1 problem. Nothing was touched.",
    ]
    assert any(line.split() == ["CRIU", "4.2.1", "(/usr/sbin/criu)", "none", "that", "works"] for line in lines)


def test_glyphs_follow_the_encoding() -> None:
    def console(encoding: str) -> Console:
        return Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding))

    assert glyphs_for(console("ascii")) is ASCII
    assert glyphs_for(console("utf-8")) is UNICODE


def test_every_event_as_json() -> None:
    objects = [json.loads(json.dumps(event_object(each))) for each in COMPLETED]
    assert [each["event"] for each in objects][:2] == ["started", "phase_started"]
    assert objects[1]["phase"] == "preflight"
    assert objects[5]["done_bytes"] == 100 * MIB
    last = objects[-1]
    assert (last["event"], last["outcome"], last["exit_status"], last["error"]) == ("result", "completed", 0, None)
    assert last["report"]["steps"][2] == {
        "name": "restore",
        "start_us": 213_000,
        "duration_us": 60_300,
        "host": "destination",
    }
    assert event_object(pb.MigrationEvent(sequence=1))["event"] == "unknown"


def test_an_error_as_json() -> None:
    last = event_object(ROLLED_BACK[-1])
    assert (last["event"], last["outcome"], last["exit_status"], last["report"]) == ("result", "rolled_back", 23, None)
    assert last["error"]["code"] == "RestoreError"
    assert last["error"]["where"] == "source"
    assert set(last["error"]) == {"code", "message", "where", "hint", "detail", "notes", "exit_status"}
    assert error_object(PreflightError("x"))["where"] == "untouched"


@given(st.integers(-10, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 200))
def test_a_bar_stays_on_its_axis(start_us: int, duration_us: int, whole_us: int, columns: int) -> None:
    span = display.bar_span(start_us, duration_us, whole_us, columns)
    assert span.offset >= 0
    assert span.length >= 1
    assert span.offset + span.length <= columns


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 200))
def test_bars_of_steps_in_a_row_leave_no_hole(first_us: int, second_us: int, columns: int) -> None:
    whole_us = first_us + second_us
    first = display.bar_span(0, first_us, whole_us, columns)
    second = display.bar_span(first_us, second_us, whole_us, columns)
    assert second.offset <= first.offset + first.length
    assert second.offset + second.length == columns


@given(st.text())
def test_cleaned_text_is_printable(text: str) -> None:
    assert "\n" not in clean(text)
    assert not set(clean_block(text)) & {"\x1b", "\r", "\x07", "\t", "\x9b"}


@pytest.mark.parametrize(("criu_version", "said"), [("4.2.1", "missing: memory moves"), ("", "unknown without CRIU")])
def test_doctor_says_what_a_missing_feature_means(criu_version: str, said: str) -> None:
    host = facts.HostFacts(host_name="a", criu_version=criu_version, features=["huge_tmpfs"])
    lines = render(report(Findings(host), Path("/run/phaul/agent.sock"), UNICODE))
    (line,) = (line for line in lines if "mem_track" in line)
    assert said in line
    assert any(line.startswith("  ✓ huge_tmpfs") for line in lines)


@pytest.mark.parametrize(("text", "allowed"), [("always [never] deny force", True), ("never [deny]", False)])
def test_huge_tmpfs(text: str, allowed: bool) -> None:
    assert huge_tmpfs_allowed(text) is allowed
