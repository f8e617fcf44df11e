"""PRECOPY: memory goes in rounds while the workload runs, until what is left fits into the downtime wished for.

Run by the coordinator between PREPARE and FREEZE. What follows a round is `convergence`'s decision; this module does
it: another pre-dump over the same page channel, a step of the throttle, or giving up. A channel that breaks in a round
is opened again and the rounds begin anew: what was written before the break is not tracked any more. The tree runs all
the time, but for a moment in each round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from phaul.errors import DowntimeError, DumpError, PhaulError, RolledBackError, TransferError, UnreachableError
from phaul.migration.convergence import Action, Decision, decide, explain
from phaul.migration.engine_requests import PreDumped, PreDumpRequest
from phaul.migration.events import EventSink, RoundFinished, Warning
from phaul.migration.facts import MigrationRequest, OnStall, WorkloadFacts
from phaul.migration.forecast import Outcome, Round, costs_of, outcome_of
from phaul.migration.host import Host
from phaul.migration.journal import Data, Journal, Mark
from phaul.migration.learning import known, learn
from phaul.migration.mode import contract_of
from phaul.migration.peer import PageChannel, PeerAgent
from phaul.migration.sending import Sending
from phaul.migration.undo import UndoStack, as_undo
from phaul.migration.verification import Verification

REOPEN_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # before each attempt to open a page channel again that broke
FULL_SPEED_PERCENT = 100
LOOK_SECONDS = 0.002  # between two looks at whether memory is on its way


class PreCopy:
    """The rounds of one migration.

    Invariant: when `run` has returned or raised, the workload runs at its own speed, or its quota is on the undo stack.

    Attributes:
        sending: over the channel that is open now.
        rounds: those of that channel, oldest first.
        newest: the source's images of the newest round, the parent of the final dump; None where there was none.
        sent_bytes: content of all pages that were sent, also over a channel that broke.
        predicted_downtime_us: as it was when the freeze was decided; 0 before.
    """

    def __init__(
        self,
        migration_id: str,
        request: MigrationRequest,
        facts: WorkloadFacts,
        images: Path,
        host: Host,
        peer: PeerAgent,
        other_host: str,
        sending: Sending,
        verification: Verification,
        lazily: bool,
        journal: Journal,
        events: EventSink,
        undo: UndoStack,
    ) -> None:
        self._verification = verification
        self._lazily = lazily
        self._id = migration_id
        self._facts = facts
        self._images = images
        self._host = host
        self._peer, self._other_host = peer, other_host
        self._journal = journal
        self._events = events
        self._undo = undo
        self._contract = contract_of(request)
        self.sending = sending
        self.rounds: list[Round] = []
        self.newest: Path | None = None
        self.sent_bytes = 0
        self.predicted_downtime_us = 0
        self._outcomes: Sequence[Outcome] = ()  # of earlier migrations between these hosts
        self._begun = 0  # rounds, those over a channel that broke too
        self._begun_us = 0  # when the newest began, which is about when its freeze was
        self._speed_percent = FULL_SPEED_PERCENT
        self._speed_as_it_began = FULL_SPEED_PERCENT  # the speed at the beginning of the newest round's interval
        self._quota: Data | None = None  # what the throttle found; in the journal as well

    async def run(self, time_left_us: Callable[[], int | None]) -> None:
        """Make rounds until the final dump is due. Raises `RolledBackError` with the workload running."""
        if self._contract.on_stall is OnStall.THROTTLE:
            await self._host.throttle.look(self._facts.root_pid)  # where it cannot be done, that is said at once
        self._outcomes = await known(self._host.outcomes, self._other_host)
        while True:
            await self._round()
            decision = decide(
                self.rounds,
                self._contract,
                costs_of(self.rounds, self._facts.memory_bytes, self._outcomes, lazy=self._lazily),
                time_left_us=time_left_us(),
                speed_percent=self._speed_percent,
            )
            self._tell(decision)
            match decision.action:
                case Action.FREEZE:
                    self.predicted_downtime_us = decision.prediction.downtime_us
                    return
                case Action.REFUSE:
                    message, hint = explain(decision, self._contract)
                    raise DowntimeError(message, hint=hint)
                case Action.THROTTLE:
                    await self._slow_to(decision.throttle_to_percent)
                case Action.ANOTHER_ROUND:
                    pass

    async def learn(self, *, page_bytes: int, dump_us: int, downtime_us: int, lazy: bool) -> None:
        """Keep what this migration has taught of what these two hosts cost, now that it is over; there as well."""
        learnt = outcome_of(
            self.rounds,
            memory_bytes=self._facts.memory_bytes,
            page_bytes=page_bytes,
            dump_us=dump_us,
            downtime_us=downtime_us,
            lazy=lazy,
        )
        if learnt is not None:
            await learn(self._host.outcomes, self._other_host, learnt)
            await self._peer.learn(self._id, learnt)

    async def full_speed(self) -> None:
        """Right before the freeze: the engine works inside the tasks, and would be slowed with them."""
        if self._quota is not None:
            await self._host.throttle.slow_to(self._quota, FULL_SPEED_PERCENT)

    async def put_back(self) -> None:
        """Give the workload's control group the quota that it had. Raises `RolledBackError` for what is left."""
        if self._quota is not None:
            left = await self._host.throttle.put_back(self._quota)
            if left:
                raise RolledBackError("; ".join(left))

    async def _round(self) -> None:
        """Make the next round; over a new channel, and from the first on, where the present one breaks."""
        for attempt, delay_seconds in enumerate(REOPEN_SECONDS):
            try:
                if attempt:
                    await self._host.clock.sleep(delay_seconds)
                    await self._open_again()
                self.rounds.append(await self._pre_dump())
                await self._verification.after_round()
                return
            except (DumpError, TransferError, UnreachableError) as error:
                if attempt + 1 == len(REOPEN_SECONDS) or (attempt and not isinstance(error, UnreachableError)):
                    raise _as_transfer_error(error) from error
                self._events.emit(Warning(f"a round failed ({error.message}); the rounds begin anew"))

    async def _open_again(self) -> None:
        self.sending.channel.close()
        self.sending = self.sending.through(await self._peer.reopen(self._id))
        self._undo.add("the page channel", as_undo(self.sending.channel.close))
        self._verification.begin_anew()
        self.rounds.clear()
        self.newest = None

    async def _pre_dump(self) -> Round:
        await self.sending.begin(frozen=False)
        channel, clock = self.sending.channel, self._host.clock
        self._begun += 1
        images = self._images / f"round-{self._begun}"
        delivered, before_us, self._begun_us = channel.delivered_bytes(), self._begun_us, clock.monotonic_us()
        request = PreDumpRequest(self._id, self._facts.root_pid, images, channel.fileno(), self.newest)
        speed_percent, self._speed_as_it_began = self._speed_as_it_began, self._speed_percent
        done = await self._pre_dump_at_full_speed(request, channel)
        self.newest = images
        self.sent_bytes += done.page_bytes
        return Round(
            number=len(self.rounds) + 1,
            page_bytes=done.page_bytes,
            wire_bytes=channel.delivered_bytes() - delivered,
            send_us=clock.monotonic_us() - self._begun_us,
            frozen_us=done.frozen_us,
            interval_us=self._begun_us - before_us if self.rounds else 0,
            speed_percent=speed_percent,
        )

    async def _pre_dump_at_full_speed(self, request: PreDumpRequest, channel: PageChannel) -> PreDumped:
        """A throttled tree stands still for longer: the engine works inside its tasks, and waits until each may run.

        So it is not throttled until its memory is on the way, which is when it runs again.
        """
        if self._quota is None:
            return await self._host.engine.pre_dump(request)
        await self.full_speed()
        over = asyncio.Event()
        slowing = asyncio.create_task(self._slow_again(channel, channel.sent_bytes(), over))
        try:
            done = await self._host.engine.pre_dump(request)
        finally:
            over.set()
            await asyncio.wait([slowing])  # never in the middle of a change: the next may be the quota's putting back
        await self._host.throttle.slow_to(self._quota, self._speed_percent)  # also where nothing was sent
        return done

    async def _slow_again(self, channel: PageChannel, sent_before: int, over: asyncio.Event) -> None:
        while channel.sent_bytes() <= sent_before and not over.is_set():
            await self._host.clock.sleep(LOOK_SECONDS)
        if self._quota is not None and not over.is_set():
            await self._host.throttle.slow_to(self._quota, self._speed_percent)

    def _tell(self, decision: Decision) -> None:
        newest = self.rounds[-1]
        self._events.emit(
            RoundFinished(
                number=newest.number,
                page_bytes=newest.page_bytes,
                wire_bytes=newest.wire_bytes,
                send_us=newest.send_us,
                frozen_us=newest.frozen_us,
                dirty_bytes_per_second=round(newest.page_bytes * 1e6 / newest.interval_us) if newest.interval_us else 0,
                predicted_downtime_us=decision.prediction.downtime_us,
                wished_downtime_us=self._contract.max_downtime_us,
                next=decision.reason,
            )
        )

    async def _slow_to(self, percent: int) -> None:
        """Take CPU time away from the workload. What it had is in the journal before the first change."""
        if self._quota is None:
            quota = await self._host.throttle.look(self._facts.root_pid)
            await self._journal.write(Mark.THROTTLING, quota)
            self._quota = quota
            self._undo.add("the workload's CPU quota", self.put_back)
        await self._host.throttle.slow_to(self._quota, percent)
        self._speed_percent = percent


def _as_transfer_error(error: PhaulError) -> PhaulError:
    """Past PREPARE a destination that cannot be reached is a reason to roll back, not to refuse."""
    if isinstance(error, UnreachableError):
        return TransferError(error.message, hint=error.hint, detail=error.detail)
    return error
