"""Action scripts as executables on disk: which are run, which are refused and why, and how each can end."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from phaul.agent.hooks import OUTPUT_LINES, HookDirectory
from phaul.migration.events import Role
from phaul.migration.facts import AddressFacts, HookFacts
from phaul.migration.hooks import HookEnd, HookScene, Stage, at_stage, environment
from phaul.system.hook_files import listed, look

SCENE = HookScene("abcd", 4711, "redis", "a", "b", (AddressFacts("10.0.0.5", 24, "eth0"),), ())
LONG_SECONDS = 20.0


def script(path: Path, body: str = "exit 0", mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(mode)
    return path


async def run(path: Path, timeout_seconds: float = LONG_SECONDS) -> HookEnd:
    hooks = HookDirectory(path.parent.parent, timeout_seconds)
    variables = environment(SCENE, Stage.PRE_DUMP, Role.SOURCE, None)
    return await hooks.run(HookFacts("pre-dump", str(path), "", timeout_seconds), variables)


def test_order_is_by_name_and_what_package_managers_leave_is_passed_over(tmp_path: Path) -> None:
    for name in (
        "20-b",
        "10-a",
        "5-z",
        "30-c.sh",
        "README",
        ".hidden",
        "10-a~",
        "x.dpkg-dist",
        "x.disabled",
        "y.rpmsave",
    ):
        script(tmp_path / name)
    assert [(hook.path.name, hook.problem) for hook in listed(tmp_path)] == [
        ("10-a", ""), ("20-b", ""), ("30-c.sh", ""), ("5-z", ""),
    ]  # fmt: skip
    assert listed(tmp_path / "none") == ()


def test_what_somebody_else_could_change_is_refused(tmp_path: Path) -> None:
    good = script(tmp_path / "d" / "good")
    assert look(good).problem == ""
    assert "not executable" in look(script(tmp_path / "d" / "plain", mode=0o644)).problem
    assert "writable by others" in look(script(tmp_path / "d" / "open", mode=0o757)).problem
    assert "writable by others" in look(script(tmp_path / "d" / "group", mode=0o775)).problem
    assert "characters" in look(script(tmp_path / "d" / "a b")).problem
    assert "regular" in look(tmp_path / "d").problem
    assert "looked at" in look(tmp_path / "d" / "none").problem
    assert "begin with /" in look(Path("d/good")).problem
    (tmp_path / "link").symlink_to(tmp_path / "d" / "open")
    assert "writable by others" in look(tmp_path / "link").problem
    (tmp_path / "d").chmod(0o777)
    assert look(good).problem == f"{tmp_path / 'd'} is writable by others than its owner"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = script(tmp_path / "d" / "theirs")
    os.chown(path, 65534, 65534)
    assert look(path).problem == "it is owned by user 65534 and not by root"


def test_a_directory_gives_each_stage_its_own_and_files_to_all(tmp_path: Path) -> None:
    script(tmp_path / "rollback" / "1")
    script(tmp_path / "pre-dump" / "1")
    found = HookDirectory(tmp_path, 5.0).find(["/bin/true"])
    assert [(hook.stage, hook.timeout_seconds) for hook in found] == [("pre-dump", 5.0), ("rollback", 5.0), ("", 5.0)]
    assert [Path(hook.path).name for hook in at_stage(found, "rollback")] == ["1", "true"]


async def test_a_hook_is_told_what_it_needs_and_nothing_of_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHAUL_SOCKET", "/secret")
    told = (await run(script(tmp_path / "pre-dump" / "env", "env; pwd; ls -l /proc/self/fd/0"))).output
    for line in (
        "PHAUL_STAGE=pre-dump", "PHAUL_ROLE=source", "PHAUL_MIGRATION_ID=abcd", "PHAUL_PID=4711", "PHAUL_COMMAND=redis",
        "PHAUL_SOURCE=a", "PHAUL_DESTINATION=b", "PHAUL_ADDRESSES=10.0.0.5/24@eth0", "CRTOOLS_SCRIPT_ACTION=pre-dump",
        "CRTOOLS_INIT_PID=4711",
    ):  # fmt: skip
        assert line in told.splitlines()
    assert "PHAUL_SOCKET" not in told
    assert told.splitlines()[-2] == "/"
    assert told.endswith("/dev/null")


async def test_how_a_hook_ends_is_told_with_its_last_lines(tmp_path: Path) -> None:
    end = await run(script(tmp_path / "s" / "fails", "seq 1000; echo oh no >&2; exit 3"))
    assert (end.exit_status, end.problem) == (3, "exit status 3")
    assert end.output.splitlines()[-2:] == ["1000", "oh no"]
    assert len(end.output.splitlines()) == OUTPUT_LINES
    assert (await run(script(tmp_path / "s" / "killed", "kill -9 $$"))).problem == "it was ended by signal 9"
    (tmp_path / "s" / "fails").chmod(0o644)
    assert "not executable" in (await run(tmp_path / "s" / "fails")).problem
    bad = script(tmp_path / "s" / "interpreter")
    bad.write_text("#!/no/such/shell\n")
    assert (await run(bad)).problem


async def test_a_hook_dies_with_its_agent(tmp_path: Path) -> None:
    path = script(tmp_path / "s" / "slow", f"echo $$ >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/child; sleep 1000")
    code = (
        f"import asyncio; from phaul.system.process import run_watched as r; asyncio.run(r([{str(path)!r}], {{}}, 99))"
    )
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    async with asyncio.timeout(LONG_SECONDS):
        while not (tmp_path / "child").exists():
            await asyncio.sleep(0.02)
    agent.kill()
    await agent.wait()
    await ended(int((tmp_path / "child").read_text()))


async def test_one_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    body = f"trap 'echo leaving; exit 0' TERM; sleep 1000 & echo $! >{tmp_path}/child; wait"
    end = await run(script(tmp_path / "s" / "slow", body), timeout_seconds=0.5)
    assert "longer than" in end.problem
    assert end.output == "leaving"
    await ended(int((tmp_path / "child").read_text()))


async def test_one_that_is_cancelled_is_ended_with_all_it_started(tmp_path: Path) -> None:
    path = script(
        tmp_path / "s" / "slow", f"sleep 1000 & echo $! >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/child; wait"
    )
    running = asyncio.create_task(run(path))
    async with asyncio.timeout(LONG_SECONDS):
        while not (tmp_path / "child").exists():
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    await ended(int((tmp_path / "child").read_text()))


async def test_what_a_hook_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    end = await run(script(tmp_path / "s" / "starts", f"sleep 1000 & echo $! >{tmp_path}/child; echo done"))
    try:
        assert (end.exit_status, end.output) == (0, "done")
        assert time.monotonic() - began < LONG_SECONDS / 2
    finally:
        os.kill(int((tmp_path / "child").read_text()), 9)


async def ended(pid: int) -> None:
    async with asyncio.timeout(LONG_SECONDS):
        while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            await asyncio.sleep(0.02)
