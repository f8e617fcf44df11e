"""Action scripts between two real agents: each stage on both hosts, in order, and what a failure of each does."""

# ruff: noqa: F811 - a fixture is imported and then asked for by its name
from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from phaul.lab.fake_machine import AgentKilledError, FakeMachine, TreeState
from phaul.migration.facts import HookFacts
from phaul.migration.hooks import HookEnd, Stage
from phaul.rpc.v1 import agent_pb2
from tests.component.conftest import ADDRESS, PID, Pair
from tests.component.in_doubt import (
    SOON_SECONDS,
    Two,
    two,  # noqa: F401 - a fixture
)
from tests.component.test_migration import nothing_left, outcome

Told = Mapping[str, str]
ON_THE_WAY = [stage for stage in Stage if stage is not Stage.ROLLBACK]
BEFORE_COMMIT = ON_THE_WAY[:-1]


def hook(machine: FakeMachine, *stages: Stage) -> None:
    machine.hooks += [HookFacts(stage, f"/hooks/{stage}/1", "", 5.0) for stage in stages]


def watch(pair: Pair) -> list[tuple[str, str]]:
    """Have hooks at every stage on both hosts; give the list in which each is noted as it runs: (host, stage)."""
    seen: list[tuple[str, str]] = []

    def note(told: Told) -> HookEnd:
        seen.append((told["PHAUL_ROLE"], told["PHAUL_STAGE"]))
        return HookEnd(0, 1000, f"{told['PHAUL_STAGE']} was here")

    for side in (pair.source, pair.destination):
        hook(side.machine, *Stage)
        side.machine.hook_end = note
    return seen


def failing_at(seen: list[tuple[str, str]], where: tuple[str, str]) -> object:
    def note(told: Told) -> HookEnd:
        here = told["PHAUL_ROLE"], told["PHAUL_STAGE"]
        seen.append(here)
        return HookEnd(3, 1000, "the last line", "exit status 3") if here == where else HookEnd(0, 1000)

    return note


@pytest.mark.parametrize("own_namespaces", [False, True])
async def test_each_stage_is_seen_on_both_hosts_in_order(pair: Pair, own_namespaces: bool) -> None:
    seen = watch(pair)
    pair.destination.machine.own_namespaces = own_namespaces
    events = await pair.migrate(ADDRESS)
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(events).error
    both = [(role, str(stage)) for stage in BEFORE_COMMIT for role in ("source", "destination")]
    assert seen[: len(both)] == both
    assert sorted(seen[len(both) :]) == [("destination", "post-resume"), ("source", "post-resume")]
    told = [event.hook_ran for event in events if event.HasField("hook_ran")]
    assert {(agent_pb2.Role.Name(each.host)[5:].lower(), each.stage) for each in told} == set(seen)
    assert len(told) == len(seen)
    assert all(each.output == f"{each.stage} was here" and not each.problem for each in told)
    for side in (pair.source, pair.destination):
        for environment in side.machine.hooks_ran:
            assert (environment["PHAUL_SOURCE"], environment["PHAUL_DESTINATION"]) == ("a", "b")
            assert environment["PHAUL_PID"] == str(PID)
            assert environment["PHAUL_ADDRESSES"] == str(ADDRESS)


@pytest.mark.parametrize("role", ["source", "destination"])
@pytest.mark.parametrize("stage", BEFORE_COMMIT)
@pytest.mark.parametrize("own_namespaces", [False, True])
async def test_a_failure_before_commit_rolls_back(pair: Pair, role: str, stage: Stage, own_namespaces: bool) -> None:
    watch(pair)
    pair.destination.machine.own_namespaces = own_namespaces
    seen: list[tuple[str, str]] = []
    for side in (pair.source, pair.destination):
        side.machine.hook_end = failing_at(seen, (role, stage))  # type: ignore[assignment]
    events = await pair.migrate(ADDRESS)
    error = outcome(events).error
    assert error.code == ("PreflightError" if stage is Stage.PREFLIGHT else "HookError")
    assert f"/hooks/{stage}/1 on the {role} failed at {stage}: exit status 3" in error.message
    assert "the last line" in error.detail
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    assert pair.destination.machine.state(PID) is TreeState.DEAD
    assert (pair.source.machine.local, pair.destination.machine.local) == ([ADDRESS], [])
    nothing_left(pair)
    at = seen.index((role, stage))
    both = [(each_role, str(each)) for each in BEFORE_COMMIT for each_role in ("source", "destination")]
    assert seen[: at + 1] == both[: at + 1]
    # Before PREPARE there is nothing to undo on either host.
    undone = [] if stage is Stage.PREFLIGHT else [("destination", "rollback"), ("source", "rollback")]
    assert seen[at + 1 :] == undone
    if undone:
        assert "exit status 3" in pair.destination.machine.hooks_ran[-1]["PHAUL_REASON"]
        assert "exit status 3" in pair.source.machine.hooks_ran[-1]["PHAUL_REASON"]


@pytest.mark.parametrize("role", ["source", "destination"])
async def test_a_failure_past_commit_is_a_warning(pair: Pair, role: str) -> None:
    watch(pair)
    for side in (pair.source, pair.destination):
        side.machine.hook_end = failing_at([], (role, "post-resume"))  # type: ignore[assignment]
    events = await pair.migrate()
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED
    warnings = [event.warning.message for event in events if event.HasField("warning")]
    assert warnings == [f"the action script /hooks/post-resume/1 on the {role} failed at post-resume: exit status 3"]
    assert list(outcome(events).report.warnings) == warnings


async def test_a_hook_of_rollback_that_fails_is_told_and_keeps_no_other_from_running(pair: Pair) -> None:
    hook(pair.source.machine, Stage.POST_DUMP, Stage.ROLLBACK, Stage.ROLLBACK)
    pair.source.machine.hook_end = lambda told: HookEnd(1, 1000, "", "exit status 1")
    events = await pair.migrate()
    assert outcome(events).error.code == "HookError"
    assert [told["PHAUL_STAGE"] for told in pair.source.machine.hooks_ran] == ["post-dump", "rollback", "rollback"]
    assert "failed at rollback" in [event.warning.message for event in events if event.HasField("warning")][-1]


async def test_cancelling_ends_a_hook_that_hangs_on_the_destination(pair: Pair) -> None:
    hook(pair.destination.machine, Stage.POST_DUMP, Stage.ROLLBACK)
    hanging, ended = asyncio.Event(), asyncio.Event()
    hooks = pair.destination.server._host.hooks
    run = hooks.run

    async def hang(facts: HookFacts, environment: Told) -> HookEnd:
        if environment["PHAUL_STAGE"] == Stage.POST_DUMP:
            hanging.set()
            try:
                await asyncio.sleep(SOON_SECONDS * 2)
            finally:
                ended.set()
        return await run(facts, environment)

    hooks.run = hang  # type: ignore[method-assign, assignment]
    migration_id = await pair.source.client.start(pair.request())
    await hanging.wait()
    assert (await pair.source.client.cancel(migration_id)).accepted
    events = [event async for event in pair.source.client.watch(migration_id)]
    assert outcome(events).error.code == "CancelledByUserError"
    assert ended.is_set()
    assert pair.source.machine.state(PID) is TreeState.RUNNING
    assert [told["PHAUL_STAGE"] for told in pair.destination.machine.hooks_ran] == ["rollback"]


async def test_without_hooks_the_destination_is_not_asked(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phaul.migration.arrivals.Arrivals.run_hooks", None)
    events = await pair.migrate()
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(events).error


async def test_a_hook_that_must_not_be_run_refuses(pair: Pair) -> None:
    pair.destination.machine.hooks.append(HookFacts("pre-dump", "/hooks/pre-dump/1", "it is not executable", 1.0))
    events = await pair.migrate()
    error = outcome(events).error
    assert error.code == "PreflightError"
    assert "/hooks/pre-dump/1 on the destination b must not be run: it is not executable" in error.message
    report = await pair.source.client.check(pair.request())
    assert [problem.code for problem in report.problems] == ["hook_refused"]
    assert [each.path for each in report.destination_hooks] == ["/hooks/pre-dump/1"]


async def test_a_named_file_runs_at_every_stage_on_both_hosts(pair: Pair) -> None:
    request = pair.request()
    request.hooks.append("/opt/hook")
    report = await pair.source.client.check(request)
    assert [each.path for each in (*report.source_hooks, *report.destination_hooks)] == ["/opt/hook", "/opt/hook"]
    assert pair.source.machine.hooks_ran == []
    migration_id = await pair.source.client.start(request)
    events = [event async for event in pair.source.client.watch(migration_id)]
    assert outcome(events).outcome == agent_pb2.OUTCOME_COMPLETED, outcome(events).error
    for side in (pair.source, pair.destination):
        assert [told["PHAUL_STAGE"] for told in side.machine.hooks_ran] == list(map(str, ON_THE_WAY))


async def test_hooks_of_rollback_run_once_when_the_source_s_agent_dies(two: Two) -> None:
    for agent in (two.source, two.destination):
        hook(agent.machine, Stage.ROLLBACK)
    hanging = asyncio.Event()

    def die(act: str) -> None:
        if act == "network.remove":
            hanging.set()
            raise AgentKilledError(act)

    two.source.machine.fault = die
    await start(two)
    async with asyncio.timeout(SOON_SECONDS):
        await hanging.wait()
    await two.source.kill()
    two.source.machine.fault = lambda _: None
    await two.source.start()
    await two.source.wait_outcome(agent_pb2.OUTCOME_ROLLED_BACK, "the agent was restarted")  # the new one says so
    await two.destination.wait_outcome(agent_pb2.OUTCOME_ROLLED_BACK)
    for agent in (two.source, two.destination):
        assert [told["PHAUL_STAGE"] for told in agent.machine.hooks_ran] == ["rollback"]
        await agent.kill()
        await agent.start()
        await asyncio.sleep(0.1)
        assert len(agent.machine.hooks_ran) == 1
    assert two.source.machine.hooks_ran[0]["PHAUL_REASON"] == "the agent was restarted"
    assert two.source.machine.hooks_ran[0]["PHAUL_DESTINATION"] == "b"


async def test_a_hook_in_the_middle_of_which_the_agent_died_is_repeated_and_told_so(two: Two) -> None:
    hook(two.destination.machine, Stage.POST_RESUME)
    died = asyncio.Event()

    def die(act: str) -> None:
        if act == "hook post-resume":
            died.set()
            raise AgentKilledError(act)

    two.destination.machine.fault = die
    await start(two)
    async with asyncio.timeout(SOON_SECONDS):
        await died.wait()
    await two.destination.kill()
    two.destination.machine.fault = lambda _: None
    await two.destination.start()
    async with asyncio.timeout(SOON_SECONDS):
        while not two.destination.machine.hooks_ran:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    (told,) = two.destination.machine.hooks_ran
    assert (told["PHAUL_STAGE"], told["PHAUL_REPEATED"]) == ("post-resume", "1")
    assert two.destination.state is TreeState.RUNNING


async def start(two: Two) -> None:
    from phaul.rpc.v1 import facts_pb2

    address = facts_pb2.AddressRequest(address=ADDRESS.address, prefix_length=ADDRESS.prefix_length)
    request = facts_pb2.MigrationRequest(root_pid=PID, destination=two.destination.target, addresses=[address])
    two.id = await two.source.client.start(request)
