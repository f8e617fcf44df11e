"""The migrations that this host takes or took part in, as `phaul status` shows them. One JSON file each, kept for good.

Written by `agent.outgoing` and `agent.peer_service`. A record that cannot be written is logged; it changes no
migration.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import structlog
from google.protobuf import json_format

from phaul.agent.messages import enum_number, error_to_message, to_message, wire_text
from phaul.errors import NoSuchMigrationError, PhaulError, PreflightError
from phaul.migration.events import MigrationReport, Outcome, Phase, Role
from phaul.rpc.v1 import agent_pb2

log = structlog.get_logger(__name__)

Ended = Callable[[agent_pb2.MigrationSummary], None]

SHOWN = 200  # the newest; older files stay on disk


class History:
    """Records below one directory, read once at the start. Only this object writes there.

    Args:
        ended: told of every migration that has ended, or is in doubt from now on.
    """

    def __init__(self, directory: Path, ended: Ended = lambda _: None) -> None:
        self._directory = directory
        self._ended = ended
        self._records: dict[str, agent_pb2.MigrationSummary] = {}
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(directory.glob("*/summary.json")):
            try:
                record = json_format.Parse(path.read_text(), agent_pb2.MigrationSummary(), ignore_unknown_fields=True)
            except (OSError, ValueError, json_format.ParseError) as error:  # ValueError: not UTF-8
                log.warning("history.unreadable", path=str(path), reason=str(error))
                continue
            self._records[record.migration_id] = record

    def begin(self, migration_id: str, role: Role, peer: str, root_pid: int, command: str, asked_by: str = "") -> None:
        """A migration begins."""
        record = agent_pb2.MigrationSummary(
            migration_id=migration_id,
            peer=peer,
            root_pid=root_pid,
            command=wire_text(command),
            started_unix_us=_now_us(),
            asked_by=wire_text(asked_by),
        )
        self._set_enum(record, "role", role)
        self._set_enum(record, "outcome", Outcome.RUNNING)
        self._records[migration_id] = record
        self._write(record)

    def describe(self, migration_id: str, command: str) -> None:
        """Preflight has found out what the workload is."""
        self._records[migration_id].command = wire_text(command)

    def enter(self, migration_id: str, phase: Phase) -> None:
        """A phase begins. Kept in memory only: the journal, not this record, is what recovery reads."""
        self._set_enum(self._records[migration_id], "phase", phase)

    def end(
        self,
        migration_id: str,
        outcome: Outcome,
        *,
        report: MigrationReport | None = None,
        error: PhaulError | None = None,
    ) -> None:
        """A migration has ended, or is IN_DOUBT, which is not the end of it."""
        record = self._records[migration_id]
        before = record.outcome
        self._set_enum(record, "outcome", outcome)
        record.ended_unix_us = 0 if outcome is Outcome.IN_DOUBT else _now_us()
        if report is not None:
            record.report.CopyFrom(to_message(report, agent_pb2.MigrationReport))
        if error is not None:
            record.error.CopyFrom(error_to_message(error))
        else:
            record.ClearField("error")
        self._write(record)
        if record.outcome != before:
            self._ended(record)

    def end_unplanned(self, settling: set[str]) -> None:
        """Migrations that an agent before this one had begun, without a journal: nothing had been touched yet."""
        for migration_id, record in self._records.items():
            if record.outcome == agent_pb2.OUTCOME_RUNNING and migration_id not in settling:
                error = PreflightError("the agent was restarted before anything was touched")
                self.end(migration_id, Outcome.REFUSED, error=error)

    def get(self, migration_id: str) -> agent_pb2.MigrationSummary:
        """Give one record; an unambiguous beginning of an ID does as well."""
        if migration_id in self._records:
            return self._records[migration_id]
        found = [key for key in self._records if migration_id and key.startswith(migration_id)]
        if len(found) != 1:
            several = f"{migration_id!r} begins the IDs of {len(found)} migrations" if found else ""
            raise NoSuchMigrationError(several or f"there is no migration {migration_id!r} on this host")
        return self._records[found[0]]

    def newest_first(self) -> list[agent_pb2.MigrationSummary]:
        """Give the latest records."""
        return sorted(self._records.values(), key=lambda record: record.started_unix_us, reverse=True)[:SHOWN]

    def _set_enum(self, record: agent_pb2.MigrationSummary, name: str, value: Role | Outcome | Phase) -> None:
        setattr(record, name, enum_number(value, record.DESCRIPTOR.fields_by_name[name]))

    def _write(self, record: agent_pb2.MigrationSummary) -> None:
        directory = self._directory / record.migration_id
        try:
            directory.mkdir(exist_ok=True, mode=0o700)
            temporary = directory / "summary.json.new"
            temporary.write_text(json_format.MessageToJson(record, preserving_proto_field_name=True))
            temporary.replace(directory / "summary.json")
        except OSError as error:
            log.warning("history.not_written", migration_id=record.migration_id, reason=str(error))


def _now_us() -> int:
    return time.time_ns() // 1000
