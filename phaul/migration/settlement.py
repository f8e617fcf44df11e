"""Bringing a migration to its end after an agent was killed: what `recovery` decides, done with the host's drivers.

`agent.settlers` runs one of these for every unfinished journal when an agent starts. Nothing gives up after COMMIT;
what has to wait for the other host waits with back-off, in doubt, until that answers or a person decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from phaul.errors import LostError, PhaulError, UnreachableError
from phaul.migration.destination import Arrival
from phaul.migration.events import Outcome, Role
from phaul.migration.hooks import HookScene, HostHooks, Stage
from phaul.migration.host import Host
from phaul.migration.interfaces import TreeIdentity, Workload
from phaul.migration.journal import Journal, Mark, last_of
from phaul.migration.peer import PeerAgent
from phaul.migration.plan import planned_addresses
from phaul.migration.recovery import (
    Choice,
    DestinationAct,
    DestinationTruth,
    SourceAct,
    SourceTruth,
    Tree,
    Word,
    decide_destination,
    decide_source,
    resolution_of,
    runs_there,
)
from phaul.migration.resuming import BACKOFF_SECONDS
from phaul.migration.undo import UndoStack
from phaul.migration.wire import SourceWire

WAIT_SECONDS = 0.1  # between two looks at a tree that CRIU is about to let go

ASK_SECONDS = 2.0  # a living source tree waits that long at most behind its fence, to hear of a copy that runs

Report = Callable[[Outcome, str], None]  # told while the migration stays in doubt, and why ("": no answer)
RUNS_ON_BOTH = (
    "the workload runs on both hosts: a person let the copy run on the destination, and on this host the workload "
    "lives, behind its fence"
)


def back_off_seconds(attempt: int) -> float:
    """How long to wait before asking the other host again; `attempt` counts from 0."""
    return BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]


async def settle_source(
    migration_id: str, journal: Journal, host: Host, peer: PeerAgent, report: Report = lambda _, __: None
) -> Outcome:
    """Settle a migration that left this host. Raises `LostError` when the destination has lost the copy."""
    plan = last_of(journal.records, Mark.PLANNED)
    if plan is None:
        return Outcome.REFUSED
    attempt = 0
    while True:
        committed = last_of(journal.records, Mark.COMMIT)
        tree = TreeIdentity.from_data(committed.data if committed else plan.data["tree"])
        state, others_alive = await host.workload.look(tree)
        word = Word.NO_ANSWER
        if state is Tree.ANOTHER_BOOT:
            word = await peer.word(migration_id)
        elif state is Tree.ALIVE and last_of(journal.records, Mark.FREEZING) and not _rolls_back(journal):
            word = await _quick_word(peer, migration_id)
        match decide_source(journal.records, SourceTruth(state, others_alive, word)):
            case SourceAct.NOTHING:
                return Outcome.COMPLETED
            case SourceAct.WAIT:
                if state is Tree.ANOTHER_BOOT:
                    report(Outcome.IN_DOUBT, "")
                    await host.clock.sleep(back_off_seconds(attempt))
                    attempt += 1
                else:
                    await host.clock.sleep(WAIT_SECONDS)
            case SourceAct.STAND_BY:
                if resolution_of(journal.records) is None:
                    await journal.write(Mark.RESOLVED, {"choice": Choice.RESUME_THERE, "word": Word.RUNNING})
                report(Outcome.IN_DOUBT, RUNS_ON_BOTH)
                await host.clock.sleep(back_off_seconds(attempt))
                attempt += 1
            case SourceAct.FINISH_KILL:
                if state is Tree.ALIVE:  # it ran on since the journal named its tasks
                    await host.workload.finish_kill(await host.workload.identify(tree.tasks[0][0]))
                await host.workload.finish_kill(tree)
            case SourceAct.GIVE_UP:
                await _give_up_addresses(journal, host)
                await _tidy_up(migration_id, journal, host)
                raise LostError(
                    "it was given up here: the workload's processes on this host are dead, and the destination, which "
                    "may have a copy, did not answer",
                    hint=f"If {plan.data['destination']} comes back with the copy, it runs there.",
                )
            case SourceAct.RESUME:
                try:
                    await _give_up_addresses(journal, host)
                    await peer.resume(migration_id)
                    await journal.write(Mark.RESUMED)
                except UnreachableError:
                    report(Outcome.IN_DOUBT, "")
                    await host.clock.sleep(back_off_seconds(attempt))
                    attempt += 1
            case SourceAct.TIDY_UP:
                await _tidy_up(migration_id, journal, host)
                await _hooks(migration_id, journal, host).run_once(Stage.POST_RESUME)
                await journal.write(Mark.ENDED, {"outcome": str(Outcome.COMPLETED)})
                return Outcome.COMPLETED
            case SourceAct.ROLL_BACK | SourceAct.ENDED_BY_ITSELF:
                await _roll_back(migration_id, journal, host, peer)
                return Outcome.ROLLED_BACK


async def settle_destination(
    migration_id: str,
    journal: Journal,
    arrival: Arrival,
    host: Host,
    source: PeerAgent,
    report: Report = lambda _, __: None,
) -> Outcome:
    """Settle a migration that came to this host. `arrival` was made from the journal; the source may use it as well."""
    attempt = 0
    while True:
        held = last_of(journal.records, Mark.HELD)
        copy = Tree.DEAD
        if held is not None:
            copy, _ = await host.workload.look(TreeIdentity.from_data(held.data))
        complete = await host.rooms.existing(migration_id) is not None
        truth = DestinationTruth(copy, complete, None)
        act = decide_destination(journal.records, truth)
        if act is DestinationAct.ASK:
            truth = DestinationTruth(copy, complete, await source.word(migration_id))
            act = decide_destination(journal.records, truth)
        match act:
            case DestinationAct.NOTHING:
                return Outcome.COMPLETED
            case DestinationAct.WAIT:
                await host.clock.sleep(WAIT_SECONDS)
            case DestinationAct.ASK:
                report(Outcome.IN_DOUBT, "")
                await host.clock.sleep(back_off_seconds(attempt))
                attempt += 1
            case DestinationAct.DISCARD:
                if held is not None:  # a CRIU that is killed together with its agent leaves the copy standing
                    await host.workload.finish_kill(TreeIdentity.from_data(held.data))
                await arrival.abort()
                await journal.write(Mark.ENDED, {"outcome": str(Outcome.ROLLED_BACK)})
                return Outcome.ROLLED_BACK
            case DestinationAct.RUN:
                if not complete:
                    raise LostError(
                        "the source tree is dead, and this host was restarted before it ran the copy: its images, "
                        "which were in memory, are gone"
                    )
                await arrival.resume()
                return Outcome.COMPLETED
            case DestinationAct.CONFIRM:
                await arrival.confirm()
                return Outcome.COMPLETED


async def died_after_commit(journal: Journal, workload: Workload) -> bool:
    """Whether the kernel says that the source's tree is dead, and its journal that this was wanted."""
    committed = last_of(journal.records, Mark.COMMIT)
    if committed is None or last_of(journal.records, Mark.ROLLING_BACK):
        return False
    state, others_alive = await workload.look(TreeIdentity.from_data(committed.data))
    return state in (Tree.DEAD, Tree.ANOTHER_BOOT) and not others_alive


def _rolls_back(journal: Journal) -> bool:
    return last_of(journal.records, Mark.ROLLING_BACK) is not None


async def _quick_word(peer: PeerAgent, migration_id: str) -> Word:
    try:
        return await asyncio.wait_for(peer.word(migration_id), ASK_SECONDS)
    except TimeoutError:
        return Word.NO_ANSWER


async def _give_up_addresses(journal: Journal, host: Host) -> None:
    """Before the copy runs, nothing of its name may stand here, also after a restart that put addresses back."""
    plan = last_of(journal.records, Mark.PLANNED)
    assert plan is not None
    await host.network.remove(planned_addresses(plan.data))


async def _tidy_up(migration_id: str, journal: Journal, host: Host) -> None:
    plan = last_of(journal.records, Mark.PLANNED)
    assert plan is not None
    wire = SourceWire.planned(host, migration_id, plan.data)
    await wire.remove_locks()
    await wire.leave()
    await _put_quota_back(journal, host)
    await host.rooms.release(migration_id)


async def _roll_back(migration_id: str, journal: Journal, host: Host, peer: PeerAgent) -> None:
    plan = last_of(journal.records, Mark.PLANNED)
    assert plan is not None
    await journal.write(Mark.ROLLING_BACK)
    wire = SourceWire.planned(host, migration_id, plan.data)
    frozen = last_of(journal.records, Mark.FREEZING) is not None
    undo = UndoStack()
    if not runs_there(journal.records):
        undo.add("the reservation on the destination", lambda: _abort(peer, migration_id))
    undo.add("images on this host", lambda: host.rooms.release(migration_id))
    undo.add("the workload's CPU quota", lambda: _put_quota_back(journal, host))
    if frozen:
        undo.add("announcements", wire.announce)
        undo.add("rules that CRIU made", wire.remove_locks)
        undo.add("the fence on this host", wire.unfence)
    if frozen or last_of(journal.records, Mark.PRECOPYING) is not None:
        # Nothing is left to do where CRIU let the tree run, or the keeper did: only where both were killed as well.
        tree = TreeIdentity.from_data(plan.data["tree"])
        undo.add("the workload's running on", lambda: host.workload.run_again(tree))
    if last_of(journal.records, Mark.SWITCHING):
        undo.add("the addresses", lambda: host.network.add(wire.addresses))
    leftovers: Sequence[str] = await undo.unwind()
    if leftovers:
        raise PhaulError("something was left behind: " + "; ".join(leftovers))
    await _hooks(migration_id, journal, host).run_once(Stage.ROLLBACK, reason="the agent was restarted")
    await journal.write(Mark.ENDED, {"outcome": str(Outcome.ROLLED_BACK)})


def _hooks(migration_id: str, journal: Journal, host: Host) -> HostHooks:
    plan = last_of(journal.records, Mark.PLANNED)
    assert plan is not None
    source, destination = plan.data.get("hosts", ("", ""))
    addresses, files = planned_addresses(plan.data), tuple(plan.data.get("hooks", ()))
    scene = HookScene(
        migration_id, int(plan.data["root_pid"]), str(plan.data["command"]), source, destination, addresses, files
    )
    return HostHooks(host.hooks, Role.SOURCE, scene, journal)


async def _put_quota_back(journal: Journal, host: Host) -> None:
    throttled = last_of(journal.records, Mark.THROTTLING)
    if throttled is not None:
        left = await host.throttle.put_back(throttled.data)
        if left:
            raise PhaulError("; ".join(left))


async def _abort(peer: PeerAgent, migration_id: str) -> None:
    try:
        await peer.abort(migration_id, "the source's agent was restarted and rolled back")
    except UnreachableError:
        return  # it asks us, and our journal says that we rolled back
