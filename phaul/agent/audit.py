"""The audit log of an agent: who asked for what, when, whether it was allowed, and how it ended.

Owned by `agent.server`. What is about to be begun is on the disk first (`write`); what has happened is written soon, in
order (`note`). What strangers bring about is written once a minute at most (`note_repeated`), with how often it was.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import structlog

from phaul.agent.messages import error_from_message
from phaul.errors import PhaulError
from phaul.rpc.v1 import agent_pb2
from phaul.system.audit_file import append

log = structlog.get_logger(__name__)

REPEATED_SECONDS = 60.0
MOST_REPEATED = 1024  # different refusals that are remembered
LONGEST_TEXT = 500

AGENT = "agent"  # who, where nobody asked


def record_of(event: str, who: str, outcome: str, **facts: object) -> dict[str, object]:
    """Put a record together: what is empty is left out, what is long is cut."""
    now = datetime.datetime.now(datetime.UTC)
    record: dict[str, object] = {"time": now.isoformat(timespec="microseconds"), "event": event, "who": who}
    for name, fact in {"outcome": outcome, **facts}.items():
        if fact not in ("", None, (), []):
            record[name] = fact[:LONGEST_TEXT] if isinstance(fact, str) else fact
    return record


class Audit:
    """Writes one log, from one thread. Owns the thread until `close`."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._repeated: dict[tuple[str, ...], tuple[float, int, dict[str, object]]] = {}  # since when, how often

    async def write(self, event: str, who: str, outcome: str, **facts: object) -> None:
        """Write a record; it is on the disk when this returns. Raises `AuditError`."""
        writing = self._thread.submit(append, self.path, record_of(event, who, outcome, **facts))
        await asyncio.shield(asyncio.wrap_future(writing))

    def note(self, event: str, who: str, outcome: str, **facts: object) -> None:
        """Write a record soon. One that cannot be written is in the agent's log."""
        self._submit(record_of(event, who, outcome, **facts))

    def note_repeated(self, event: str, who: str, outcome: str, **facts: object) -> None:
        """The same, for what others can bring about as often as they like: the first at once, the rest counted."""
        key = (event, who, outcome, str(facts.get("reason", "")))
        record = record_of(event, who, outcome, **facts)
        now = self._clock()
        since, times, _ = self._repeated.pop(key, (now - REPEATED_SECONDS, 0, record))
        if now - since < REPEATED_SECONDS:
            self._repeated[key] = (since, times + 1, record)
            return
        self._submit({**record, "times": times + 1} if times else record)
        self._repeated[key] = (now, 0, record)
        while len(self._repeated) > MOST_REPEATED:
            self._give_up(next(iter(self._repeated)))

    def migration(self, summary: agent_pb2.MigrationSummary) -> None:
        """How a migration has ended, or stands."""
        error = error_from_message(summary.error) if summary.HasField("error") else None
        self.note(
            "migration.ended",
            summary.asked_by or AGENT,
            agent_pb2.Outcome.Name(summary.outcome).removeprefix("OUTCOME_").lower(),
            migration_id=summary.migration_id,
            role=agent_pb2.Role.Name(summary.role).removeprefix("ROLE_").lower(),
            peer=summary.peer,
            root_pid=summary.root_pid,
            command=summary.command,
            error=error.code if error else "",
            reason=error.message if error else "",
        )

    async def close(self) -> None:
        """Write what is still counted, and wait until all is on the disk."""
        for key in list(self._repeated):
            self._give_up(key)
        await asyncio.to_thread(self._thread.shutdown)

    def _give_up(self, key: tuple[str, ...]) -> None:
        _, times, record = self._repeated.pop(key)
        if times:
            self._submit({**record, "times": times})

    def _submit(self, record: dict[str, object]) -> None:
        self._thread.submit(append, self.path, record).add_done_callback(_complain)


def _complain(written: Future[None]) -> None:
    error = written.exception()
    if isinstance(error, PhaulError):
        log.error("audit.not_written", reason=error.message)
    elif error is not None:
        log.error("audit.not_written", reason=repr(error))
