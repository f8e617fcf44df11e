"""`phaul resolve` against a scripted agent: what is shown, when it asks, what it refuses, its exit statuses."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from phaul.rpc.v1 import agent_pb2 as pb
from phaul.rpc.v1 import facts_pb2, peer_pb2
from tests.unit.fake_agent import MIGRATION_ID, START_UNIX_US, Script
from tests.unit.test_cli_commands import Terminal, objects, phaul, serving

READING_SECONDS = 0.3  # from the question on until the command waits for its answer
DANGER = "If the other host still runs it, there will be two copies."
IN_DOUBT = pb.MigrationSummary(
    migration_id=MIGRATION_ID,
    role=pb.ROLE_DESTINATION,
    peer="a",
    root_pid=4711,
    command="redis-server",
    outcome=pb.OUTCOME_IN_DOUBT,
    started_unix_us=START_UNIX_US,
    error=facts_pb2.ErrorInfo(code="InDoubtError", message="the source does not answer"),
)


def doubt(
    resume: pb.Safety.ValueType, abort: pb.Safety.ValueType, *, role: pb.Role.ValueType = pb.ROLE_DESTINATION
) -> pb.DoubtReport:
    options = [
        pb.DoubtOption(choice=choice, safety=safety, reason=f"reason {choice}", danger=DANGER if safety == 2 else "")
        for choice, safety in ((pb.CHOICE_RESUME_HERE, resume), (pb.CHOICE_ABORT_HERE, abort))
    ]
    return pb.DoubtReport(
        migration_id=MIGRATION_ID,
        role=role,
        peer="10.0.0.1:7428",
        root_pid=4711,
        command="redis-server",
        stands="a complete copy, held: it has not run yet",
        marks=["room was reserved", "a complete copy was held"],
        tree=pb.TREE_HELD,
        images_complete=True,
        other=peer_pb2.WORD_NO_ANSWER,
        options=options,
    )


UNSAFE = doubt(pb.SAFETY_UNSAFE, pb.SAFETY_UNSAFE)
SAFE = doubt(pb.SAFETY_SAFE, pb.SAFETY_IMPOSSIBLE)
NEITHER = doubt(pb.SAFETY_IMPOSSIBLE, pb.SAFETY_IMPOSSIBLE)
COMPLETED = pb.ResolveReply(outcome=pb.OUTCOME_COMPLETED, warnings=["nobody was told"])


def script(report: pb.DoubtReport, reply: pb.ResolveReply = COMPLETED) -> Script:
    return Script(migrations=[IN_DOUBT], doubt=report, resolved=reply)


def decisions(script: Script) -> list[tuple[int, bool]]:
    """What was asked of the agent beyond looking."""
    asked = [each for each in script.requests if isinstance(each, pb.ResolveRequest)]
    assert all(each.migration_id == MIGRATION_ID for each in asked)
    return [(each.choice, each.force) for each in asked]


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def test_it_shows_and_decides_nothing_by_itself(socket: Path) -> None:
    with serving(socket, script(UNSAFE)) as told:
        done = phaul("resolve", MIGRATION_ID[:3], "--socket", str(socket))
        as_json = phaul("resolve", MIGRATION_ID, "--json", "--yes", "--socket", str(socket))
    assert done.returncode == as_json.returncode == 40
    assert decisions(told) == []
    for text in ("redis-server (PID 4711) ← 10.0.0.1:7428", "does not answer", "held: it has not run", DANGER):
        assert text in done.stdout
    for text in ("THIS HOST (destination)", "a complete copy was held", "--resume-here", "--abort-here", "not safe"):
        assert text in done.stdout
    (told_as_json,) = objects(as_json)
    assert (told_as_json["event"], told_as_json["other"], told_as_json["exit_status"]) == ("doubt", "no_answer", 40)
    assert told_as_json["options"][0]["safety"] == "unsafe"
    assert told_as_json["options"][0]["choice"] == "resume_here"


@pytest.mark.parametrize(("option", "choice"), [("--resume-here", 1), ("--abort-here", 2)])
def test_what_is_not_safe_needs_yes_where_nobody_can_be_asked(socket: Path, option: str, choice: int) -> None:
    with serving(socket, script(UNSAFE)) as told:
        refused = phaul("resolve", MIGRATION_ID, option, "--socket", str(socket))
        assert decisions(told) == []
        done = phaul("resolve", MIGRATION_ID, option, "--yes", "--json", "--socket", str(socket))
        assert decisions(told) == [(choice, True)]
    assert refused.returncode == 2
    assert DANGER in refused.stderr
    assert "--yes" in refused.stderr
    assert done.returncode == 0
    last = objects(done)[-1]
    assert (last["event"], last["outcome"], last["exit_status"]) == ("resolve", "completed", 0)


def test_what_is_safe_is_done_without_a_question(socket: Path) -> None:
    with serving(socket, script(SAFE)) as told:
        done = phaul("resolve", MIGRATION_ID, "--resume-here", "--socket", str(socket))
        assert decisions(told) == [(1, False)]
        impossible = phaul("resolve", MIGRATION_ID, "--abort-here", "--yes", "--socket", str(socket))
        assert decisions(told) == [(1, False)]
    assert done.returncode == 0
    assert "redis-server (PID 4711) runs on this host" in done.stdout
    assert "nobody was told" in done.stdout
    assert impossible.returncode == 40
    assert "reason 2" in impossible.stderr


def test_decided_but_not_done_is_still_in_doubt(socket: Path) -> None:
    with serving(socket, script(SAFE, pb.ResolveReply(outcome=pb.OUTCOME_IN_DOUBT))):
        done = phaul("resolve", MIGRATION_ID, "--resume-here", "--socket", str(socket))
    assert done.returncode == 40
    assert f"phaul status {MIGRATION_ID}" in done.stdout


def test_what_has_ended_needs_no_decision(socket: Path) -> None:
    report = pb.DoubtReport()
    report.CopyFrom(NEITHER)
    report.settled = True
    with serving(socket, script(report)) as told:
        shown = phaul("resolve", MIGRATION_ID, "--socket", str(socket))
        refused = phaul("resolve", MIGRATION_ID, "--resume-here", "--yes", "--socket", str(socket))
    assert (shown.returncode, refused.returncode) == (0, 2)
    assert decisions(told) == []


def test_both_choices_at_once_are_refused_before_anybody_is_asked(socket: Path) -> None:
    with serving(socket, script(UNSAFE)) as told:
        done = phaul("resolve", MIGRATION_ID, "--resume-here", "--abort-here", "--yes", "--socket", str(socket))
    assert done.returncode == 2
    assert told.requests == []


@pytest.mark.parametrize(
    ("arguments", "typed", "wanted", "status"),
    [
        ([], ["r\n", "yes\n"], [(1, True)], 0),
        ([], ["A\n", "yes\n"], [(2, True)], 0),
        ([], ["r\n", "y\n"], [], 40),
        ([], ["\n"], [], 40),
        ([], ["x\n"], [], 40),
        (["--resume-here"], ["yes\n"], [(1, True)], 0),
        (["--abort-here"], ["\n"], [], 40),
        (["--abort-here", "--yes"], [], [(2, True)], 0),
    ],
)
def test_a_person_is_asked(
    socket: Path, arguments: list[str], typed: list[str], wanted: list[tuple[int, bool]], status: int
) -> None:
    with serving(socket, script(UNSAFE)) as told:
        person = Terminal("resolve", MIGRATION_ID, *arguments, "--socket", str(socket))
        questions = ["[l]eave it?", "Type yes:"]
        for question, answer in zip(questions if not arguments else questions[1:], typed, strict=False):
            person.wait_for(question)
            person.type(answer)
        assert person.exit_status() == status
        assert decisions(told) == wanted


def test_ctrl_c_at_the_question_leaves_it(socket: Path) -> None:
    with serving(socket, script(UNSAFE)) as told:
        person = Terminal("resolve", MIGRATION_ID, "--resume-here", "--socket", str(socket))
        person.wait_for("Type yes:")
        time.sleep(READING_SECONDS)
        person.interrupt()
        assert person.exit_status() == 130
        assert decisions(told) == []


def test_where_nothing_is_possible_nothing_is_asked(socket: Path) -> None:
    with serving(socket, script(NEITHER)):
        person = Terminal("resolve", MIGRATION_ID, "--socket", str(socket))
        assert person.exit_status() == 40
    assert "[l]eave" not in person.seen


def test_status_names_the_command_in_red(socket: Path) -> None:
    with serving(socket, script(UNSAFE)):
        table = phaul("status", "--socket", str(socket))
        person = Terminal("status", "--socket", str(socket))
        assert person.exit_status() == 0
        one = phaul("status", MIGRATION_ID, "--socket", str(socket))
    assert "in doubt" in table.stdout
    assert f"phaul resolve {MIGRATION_ID}" in table.stdout
    assert f"phaul resolve {MIGRATION_ID}" in one.stdout
    assert "\x1b[1;31min doubt" in person.seen
