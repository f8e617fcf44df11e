"""Telling how much memory has travelled, while CRIU's dump sends it. Run as a task by the coordinator."""

from __future__ import annotations

from phaul.migration.events import EventSink, Phase, Progress
from phaul.migration.interfaces import Clock
from phaul.migration.peer import PageChannel

INTERVAL_SECONDS = 0.1


async def tell_progress(channel: PageChannel, total_bytes: int, clock: Clock, events: EventSink) -> None:
    """Emit `Progress` until cancelled. `total_bytes` is an estimate: what the workload held at preflight."""
    last_us, last_bytes = clock.monotonic_us(), 0
    while True:
        await clock.sleep(INTERVAL_SECONDS)
        now_us, done_bytes = clock.monotonic_us(), channel.sent_bytes()
        rate = (done_bytes - last_bytes) * 1_000_000 // max(now_us - last_us, 1)
        events.emit(Progress(Phase.FREEZE, done_bytes, max(total_bytes, done_bytes), rate))
        last_us, last_bytes = now_us, done_bytes
