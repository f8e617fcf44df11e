"""Migrations in doubt between two real agents, settled by a person: what is told, what runs, what the other finds."""

# ruff: noqa: F811 - a fixture is imported and then asked for by its name
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from phaul.errors import InDoubtError, UsageError
from phaul.lab.fake_machine import AgentKilledError, TreeState
from phaul.rpc.v1 import agent_pb2 as pb
from phaul.rpc.v1 import peer_pb2
from tests.component.in_doubt import (
    IMPOSSIBLE,
    QUIET_SECONDS,
    SAFE,
    SOON_SECONDS,
    UNSAFE,
    CutPeer,
    Two,
    two,  # noqa: F401 - a fixture
)


async def test_a_coordinator_without_an_answer_is_in_doubt_and_ends_by_itself(two: Two) -> None:
    await two.migrate("Resume")
    summary = await two.source.wait_outcome(pb.OUTCOME_IN_DOUBT)
    assert (summary.error.code, summary.ended_unix_us) == ("InDoubtError", 0)
    assert f"`phaul resolve {two.id}`" in summary.error.hint
    doubt = await two.source.client.describe_doubt(two.id)
    assert (doubt.tree, doubt.other, doubt.stands) == (pb.TREE_DEAD, peer_pb2.WORD_NO_ANSWER, "dead")
    assert doubt.marks[-1].startswith("COMMIT")
    two.heal()
    summary = await two.source.wait_outcome(pb.OUTCOME_COMPLETED)
    assert summary.report.downtime_us > 0
    assert not summary.HasField("error")
    await two.runs_only_on(two.destination)
    await two.clean()


@pytest.mark.parametrize("restarted", [True, False], ids=["restarted", "held by the same agent"])
async def test_the_copy_runs_by_decision_and_the_source_finds_it_completed(two: Two, restarted: bool) -> None:
    await two.migrate("Resume")
    await two.source.kill()
    if restarted:
        await two.destination.kill()
        assert two.destination.state is TreeState.DEAD
        await two.destination.start()
        await two.destination.wait_outcome(pb.OUTCOME_IN_DOUBT)
    doubt = await two.destination.client.describe_doubt(two.id[:3])
    assert (doubt.other, doubt.images_complete) == (peer_pb2.WORD_NO_ANSWER, True)
    assert doubt.tree == (pb.TREE_DEAD if restarted else pb.TREE_HELD)
    assert await two.safeties(two.destination) == (UNSAFE, UNSAFE)
    for choice in (pb.CHOICE_RESUME_HERE, pb.CHOICE_ABORT_HERE):
        with pytest.raises(InDoubtError, match="not safe"):
            await two.destination.client.resolve(two.id, choice, force=False)
    assert two.destination.state is not TreeState.RUNNING

    reply = await two.destination.client.resolve(two.id, pb.CHOICE_RESUME_HERE, force=True)
    assert reply.outcome == pb.OUTCOME_COMPLETED
    await two.runs_only_on(two.destination)
    assert (await two.destination.summary()).outcome == pb.OUTCOME_COMPLETED
    with pytest.raises(UsageError, match="nothing to resolve"):
        await two.destination.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=True)

    two.heal()
    await two.source.start()
    await two.source.wait_outcome(pb.OUTCOME_COMPLETED)
    await two.runs_only_on(two.destination)
    await two.clean()


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_source_that_says_committed_is_not_overruled(two: Two, restarted: bool) -> None:
    """It cannot tell the destination by itself, but answers: the copy may run, and must not be thrown away."""
    await two.migrate("Resume")
    if restarted:
        await two.source.kill()
        await two.source.start()
    await two.source.wait_outcome(pb.OUTCOME_IN_DOUBT)
    two.heal()
    two.link.blocked = "Resume"
    assert await two.safeties(two.destination) == (SAFE, IMPOSSIBLE)
    with pytest.raises(InDoubtError, match="last copy") as refused:
        await two.destination.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=True)
    assert refused.value.exit_status == 40
    reply = await two.destination.client.resolve(two.id, pb.CHOICE_RESUME_HERE, force=False)
    assert reply.outcome == pb.OUTCOME_COMPLETED
    two.link.blocked = ""
    await two.source.wait_outcome(pb.OUTCOME_COMPLETED)
    await two.runs_only_on(two.destination)
    await two.clean()


async def test_given_up_on_the_source_and_the_copy_comes_back(two: Two) -> None:
    await two.migrate("Resume")
    await two.destination.kill()
    await two.source.wait_outcome(pb.OUTCOME_IN_DOUBT)
    assert await two.safeties(two.source) == (IMPOSSIBLE, UNSAFE)
    with pytest.raises(InDoubtError, match="processes on this host are dead"):
        await two.source.client.resolve(two.id, pb.CHOICE_RESUME_HERE, force=True)
    reply = await two.source.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=True)
    assert reply.outcome == pb.OUTCOME_LOST
    assert (two.source.machine.fences, two.source.machine.local, two.source.state) == ({}, [], TreeState.DEAD)
    events = [event async for event in two.source.client.watch(two.id)]
    assert events[-1].finished.error.code == "LostError"

    two.heal()
    await two.destination.start()
    await two.destination.wait_outcome(pb.OUTCOME_COMPLETED)
    await two.runs_only_on(two.destination)
    await two.clean()


async def test_given_up_on_a_source_that_was_restarted(two: Two) -> None:
    await two.migrate("Resume")
    await two.source.kill()
    await two.destination.kill()
    await two.source.start()
    await two.source.wait_outcome(pb.OUTCOME_IN_DOUBT)
    assert await two.safeties(two.source) == (IMPOSSIBLE, UNSAFE)
    reply = await two.source.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=True)
    assert reply.outcome == pb.OUTCOME_LOST
    await two.source.kill()
    await two.source.start()
    assert (await two.source.summary()).outcome == pb.OUTCOME_LOST
    two.heal()
    await two.destination.start()
    await two.destination.wait_outcome(pb.OUTCOME_COMPLETED)
    await two.runs_only_on(two.destination)
    await two.clean()


async def test_thrown_away_on_the_destination(two: Two) -> None:
    """The source rolled back and could not say so; a person says it for it."""
    reached = asyncio.Event()

    def fault(act: str) -> None:
        if act == "network.remove":
            two.link.cut = True
            reached.set()
            raise OSError(5, "on purpose")

    two.source.machine.fault = fault
    await two.migrate("nothing")
    await asyncio.wait_for(reached.wait(), SOON_SECONDS)
    await two.source.wait_outcome(pb.OUTCOME_ROLLED_BACK)
    assert two.destination.state is TreeState.FROZEN
    assert await two.safeties(two.destination) == (UNSAFE, UNSAFE)
    reply = await two.destination.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=True)
    assert reply.outcome == pb.OUTCOME_ROLLED_BACK
    await two.runs_only_on(two.source)
    assert (await two.destination.summary()).outcome == pb.OUTCOME_ROLLED_BACK
    await two.clean()


async def test_an_answer_that_says_rolled_back_forbids_the_copy(two: Two) -> None:
    def fault(act: str) -> None:
        if act == "network.remove":
            two.link.cut = True
            raise OSError(5, "on purpose")

    two.source.machine.fault = fault
    await two.migrate("nothing")
    await two.source.wait_outcome(pb.OUTCOME_ROLLED_BACK)
    two.heal()
    assert await two.safeties(two.destination) == (IMPOSSIBLE, SAFE)
    with pytest.raises(InDoubtError, match="rolled back"):
        await two.destination.client.resolve(two.id, pb.CHOICE_RESUME_HERE, force=True)
    await two.destination.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=False)
    await two.runs_only_on(two.source)
    await two.clean()


@pytest.mark.parametrize("choice", [pb.CHOICE_ABORT_HERE, pb.CHOICE_RESUME_HERE])
async def test_a_person_who_was_wrong_ends_one_of_two_copies(two: Two, choice: pb.Choice.ValueType) -> None:
    """The source's agent died before COMMIT, its CRIU let the tree run on, and somebody let the copy run as well."""
    stopped = asyncio.Event()

    def fault(act: str) -> None:
        if act == "network.remove":
            two.source.machine.agent_alive = lambda: False
            two.link.cut = True
            stopped.set()
            raise AgentKilledError(act)

    two.source.machine.fault = fault
    await two.migrate("nothing")
    await asyncio.wait_for(stopped.wait(), SOON_SECONDS)
    await two.source.kill()
    two.source.machine.fault = lambda _: None
    await two.destination.client.resolve(two.id, pb.CHOICE_RESUME_HERE, force=True)
    assert (two.source.state, two.destination.state) == (TreeState.RUNNING, TreeState.RUNNING)

    two.heal()
    await two.source.start()
    await two.source.wait_outcome(pb.OUTCOME_IN_DOUBT, "runs on both hosts")
    assert two.id in two.source.machine.fences, "what it says must not reach anybody"
    assert await two.safeties(two.source) == (UNSAFE, SAFE)
    await two.source.kill()
    two.link.cut = True
    await two.source.start()
    await asyncio.sleep(QUIET_SECONDS)
    assert two.id in two.source.machine.fences, "it is known from before, also where nobody answers"
    two.heal()

    reply = await two.source.client.resolve(two.id, choice, force=choice == pb.CHOICE_RESUME_HERE)
    if choice == pb.CHOICE_ABORT_HERE:
        assert reply.outcome == pb.OUTCOME_COMPLETED
        await two.runs_only_on(two.destination)
    else:
        assert reply.outcome == pb.OUTCOME_ROLLED_BACK
        assert two.source.state is TreeState.RUNNING
        assert two.destination.state is TreeState.RUNNING, "which nobody here can end"
    await two.clean()


async def test_nothing_can_be_resolved_while_it_goes_well(two: Two) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()
    two.link.cut_at = "nothing"
    send_images = CutPeer.send_images

    async def slow(peer: CutPeer, migration_id: str, directory: Path) -> int:
        entered.set()
        await go_on.wait()
        return await send_images(peer, migration_id, directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CutPeer, "send_images", slow)
        migrating = asyncio.create_task(two.migrate("Nothing"))
        await asyncio.wait_for(entered.wait(), SOON_SECONDS)
        migrating.cancel()
        assert await two.safeties(two.destination) == (IMPOSSIBLE, IMPOSSIBLE)
        assert await two.safeties(two.source) == (SAFE, SAFE)
        reply = await two.source.client.resolve(two.id, pb.CHOICE_ABORT_HERE, force=False)
        assert reply.outcome == pb.OUTCOME_ROLLED_BACK
    assert (await two.source.summary()).error.code == "CancelledByUserError"
    await two.runs_only_on(two.source)
    await two.clean()
