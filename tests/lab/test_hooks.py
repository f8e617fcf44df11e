"""Action scripts with real CRIU: every stage on both hosts, on success, on failure and after an agent's death."""

from __future__ import annotations

import pytest

from phaul.lab.host import Host
from phaul.migration.hooks import Stage

from .hooking import DIRECTORY, noted, put, ran, stages
from .moves import Move, migrate
from .stage import Stage as LabStage
from .witness import wait_until

BEFORE_COMMIT = [stage for stage in Stage if stage not in (Stage.POST_RESUME, Stage.ROLLBACK)]
BOTH = [(role, str(stage)) for stage in BEFORE_COMMIT for role in ("source", "destination")]


def wait_runs(count: int, *hosts: Host) -> list[dict[str, str]]:
    wait_until(lambda: len(ran(*hosts)) >= count, f"there are no {count} runs", 20)
    return ran(*hosts)


def test_each_stage_is_seen_on_both_hosts_in_order(stage: LabStage) -> None:
    address = stage.ip4
    stage.add_address(address)
    pid = stage.start("ticker")
    with noted((stage.a, stage.b)):
        # At this stage the copy's processes are there and none of them runs.
        put(stage.b, "post-restore", "60-look", "#!/bin/sh\ncut -d' ' -f1,3 /proc/$CRTOOLS_INIT_PID/stat\n")
        move = stage.move(pid, stage.a, address)
        runs = wait_runs(len(BOTH) + 2, stage.a, stage.b)
        assert stages(runs)[: len(BOTH)] == BOTH
        assert sorted(stages(runs)[len(BOTH) :]) == [("destination", "post-resume"), ("source", "post-resume")]
        for told in runs:
            assert told["PHAUL_MIGRATION_ID"] == move.id
            assert told["PHAUL_PID"] == str(pid)
            assert (told["PHAUL_SOURCE"], told["PHAUL_DESTINATION"]) == ("a", "b")
            assert told["PHAUL_ADDRESSES"] == f"{address}@eth0"
            assert told["CRTOOLS_SCRIPT_ACTION"] == told["PHAUL_STAGE"]
        restored = [told for told in runs if told["PHAUL_ROLE"] == "destination" and "CRTOOLS_INIT_PID" in told]
        assert [told["PHAUL_STAGE"] for told in restored] == [
            "setup-namespaces", "post-restore", "switchover", "post-resume",
        ]  # fmt: skip
        told_by_cli = [each for each in move.events if each["event"] == "hook_ran"]
        assert len(told_by_cli) == len(runs) + 1
        (looked,) = (each for each in told_by_cli if each["path"].endswith("60-look"))
        assert looked["output"].split()[0] == str(pid)
        stage.check_ticks(pid, stage.a, stage.b)


@pytest.mark.parametrize(
    ("role", "at"),
    [
        ("source", "post-dump"),
        ("destination", "setup-namespaces"),
        ("destination", "post-restore"),
        ("source", "switchover"),
    ],
)
def test_a_failing_hook_rolls_back(stage: LabStage, role: str, at: str) -> None:
    address = stage.ip4
    stage.add_address(address)
    pid = stage.start("ticker")
    failing = stage.a if role == "source" else stage.b
    with noted((stage.a, stage.b)):
        path = put(failing, at, "60-fail", "#!/bin/sh\necho no backend left; exit 7\n")
        move = migrate(stage.a, pid, "b", address)
        error = move.error
        assert (error["code"], move.status, error["where"]) == ("HookError", 27, "source"), move.told()
        assert error["message"] == f"the action script {path} on the {role} failed at {at}: exit status 7"
        assert error["detail"] == "no backend left"
        assert stage.has_address(stage.a, address)
        assert not stage.has_address(stage.b, address)
        runs = ran(stage.a, stage.b)
        begun = BOTH[: BOTH.index((role, at)) + 1]
        assert stages(runs) == [*begun, ("destination", "rollback"), ("source", "rollback")]
        assert runs[-1]["PHAUL_REASON"] == runs[-2]["PHAUL_REASON"] == error["message"]
        stage.check_ticks(pid, stage.a)


def test_a_hook_that_takes_too_long_is_ended_and_rolls_back(stage: LabStage) -> None:
    pid = stage.start("ticker")
    with noted((stage.a, stage.b), (Stage.ROLLBACK,)):
        put(stage.b, "pre-restore", "10-slow", "#!/bin/sh\necho waiting; sleep 1000\n")
        move = migrate(stage.a, pid, "b", options=["--freeze-timeout", "3s"])
        assert move.error["code"] == "DeadlineError", move.told()
        assert stages(ran(stage.a, stage.b)) == [("destination", "rollback"), ("source", "rollback")]
        stage.check_ticks(pid, stage.a)


def test_hooks_of_rollback_run_once_after_the_source_s_agent_died(stage: LabStage) -> None:
    pid = stage.start("ticker")
    with noted((stage.a, stage.b), (Stage.POST_DUMP, Stage.ROLLBACK)):
        put(stage.a, "pre-restore", "10-slow", "#!/bin/sh\nexec sleep 1000\n")
        with Move(stage.a, pid, "b") as move:
            move.wait_phase("restore")
            stage.a.kill_agent()
            stage.a.start_agent()
            runs = wait_runs(4, stage.a, stage.b)
        both = [("source", "post-dump"), ("destination", "post-dump")]
        assert stages(runs)[:2] == both
        assert sorted(stages(runs)[2:]) == [("destination", "rollback"), ("source", "rollback")]
        assert all("PHAUL_REPEATED" not in told for told in runs)
        stage.check_ticks(pid, stage.a)


def test_what_must_not_be_run_is_refused_and_said_by_check(stage: LabStage) -> None:
    pid = stage.start("ticker")
    with noted((stage.a, stage.b), (Stage.PRE_DUMP,)):
        stage.b.path(f"{DIRECTORY}/pre-dump/50-note").chmod(0o777)
        told = stage.a.exec(["phaul", "check", str(pid), "--to", "b"], check=False)
        assert told.returncode == 10
        words = " ".join(told.stdout.split())
        assert f"{DIRECTORY}/pre-dump/50-note on the destination b must not be run" in words
        assert "Action scripts that would be run" in words
        stage.refused(pid)
        stage.b.path(f"{DIRECTORY}/pre-dump/50-note").chmod(0o755)
        error = migrate(stage.a, pid, "b", options=["--hook", "/etc/hostname"]).error
        assert "/etc/hostname" in error["message"]
        stage.check_undisturbed(pid, since=0)
