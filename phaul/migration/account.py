"""What the coordinator says of a migration as it begins, and the account of a completed one at its end."""

from __future__ import annotations

from phaul.migration.events import MigrationReport, Started
from phaul.migration.facts import AddressFacts, Mode, WorkloadFacts
from phaul.migration.peer import RestoredCopy
from phaul.migration.rounds import PreCopy
from phaul.migration.sending import Sending
from phaul.migration.timeline import Timeline


def started(facts: WorkloadFacts, destination: str) -> Started:
    """What is known once preflight has looked at the workload."""
    return Started(
        root_pid=facts.root_pid,
        command=facts.tasks[0].command,
        destination=destination,
        processes=len(facts.tasks),
        memory_bytes=facts.memory_bytes,
        connections=len(facts.connections),
    )


def account(
    timeline: Timeline,
    facts: WorkloadFacts,
    addresses: tuple[AddressFacts, ...],
    copy: RestoredCopy,
    image_bytes: int,
    precopy: PreCopy | None,
    sending: Sending,
    warnings: tuple[str, ...],
) -> MigrationReport:
    """Put it together. `sending` knows what went over the page channel, also when that is closed."""
    return MigrationReport(
        new_pid=copy.pid,
        downtime_us=timeline.resumed_us - timeline.frozen_us,
        freeze_us=timeline.killed_us - timeline.frozen_us,
        total_us=timeline.resumed_us - timeline.started_us,
        memory_bytes=copy.page_bytes,
        image_bytes=image_bytes,
        phases=timeline.phases(),
        steps=timeline.steps(),
        warnings=warnings,
        processes=len(facts.tasks),
        connections=len(facts.connections),
        addresses=tuple(map(str, addresses)),
        mode=Mode.PRE_COPY if precopy else Mode.STOP_AND_COPY,
        rounds=len(precopy.rounds) if precopy else 0,
        sent_bytes=sending.sent_bytes(),
        wire_bytes=sending.delivered_bytes(),
        compressed=sending.compressed,
        predicted_downtime_us=precopy.predicted_downtime_us if precopy else 0,
    )


async def learn(
    precopy: PreCopy, sending: Sending, sent_before: int, dump_us: int, timeline: Timeline, *, lazily: bool
) -> None:
    """What this migration cost makes the prediction of the next one better. `sent_before`: bytes before the freeze."""
    await precopy.learn(
        page_bytes=sending.channel.sent_bytes() - sent_before,
        dump_us=dump_us,
        downtime_us=timeline.resumed_us - timeline.frozen_us,
        lazy=lazily,
    )
