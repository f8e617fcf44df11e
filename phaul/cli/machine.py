"""Output for programs: one JSON object a line, with names that stay. Used wherever `--json` was given.

Every object of a stream has `event`. Field names are those of the .proto files; an enum is its name in lower case
without the prefix; an unset message is null; an error is `error_object`. The last line of `migrate` and `watch` is
`{"event": "result", ...}`, or `error` where there never was a migration, or `detached` where it goes on without us.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from phaul.agent.messages import error_from_message
from phaul.errors import PhaulError, Where
from phaul.rpc.v1.agent_pb2 import MigrationEvent
from phaul.rpc.v1.facts_pb2 import ErrorInfo

DEFECT_STATUS = 70


def print_object(fields: Mapping[str, object]) -> None:
    """Print one object on a line of its own, at once."""
    sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def message_object(message: Message) -> dict[str, Any]:
    """Give a message as plain values; every field of it is there, whether set or not."""
    fields = cast("Sequence[FieldDescriptor]", message.DESCRIPTOR.fields)
    return {field.name: _field_value(message, field) for field in fields}


def event_object(event: MigrationEvent) -> dict[str, Any]:
    """Give an event of a migration; the end of it is called `result`."""
    kind = event.WhichOneof("kind")
    head = {
        "event": kind or "unknown",
        "migration_id": event.migration_id,
        "sequence": event.sequence,
        "unix_us": event.unix_us,
    }
    if kind is None:
        return head
    body = message_object(getattr(event, kind))
    if kind != "finished":
        return head | body
    return head | {"event": "result", "exit_status": _exit_status(event, body["outcome"])} | body


def error_object(error: PhaulError) -> dict[str, Any]:
    """Give an error: its stable code, where the workload runs, what to do, and what undoing met."""
    return {
        "code": error.code,
        "message": error.message,
        "where": where_name(error.where),
        "hint": error.hint,
        "detail": error.detail,
        "notes": list(error.notes),
        "exit_status": error.exit_status,
    }


def where_name(where: Where) -> str:
    """Name where the workload runs: untouched, source, destination, in_doubt, lost, dumped, not_concerned."""
    return where.name.lower()


def _exit_status(event: MigrationEvent, outcome: str) -> int:
    if event.finished.HasField("error"):
        return error_from_message(event.finished.error).exit_status
    return 0 if outcome == "completed" else DEFECT_STATUS


def _field_value(message: Message, field: FieldDescriptor) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_single_value(field, item) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _single_value(field, value)


def _single_value(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, ErrorInfo):
        return error_object(error_from_message(value))
    if isinstance(value, Message):
        return message_object(value)
    if field.enum_type is not None:
        return _enum_name(field.enum_type, value)
    return value


def _enum_name(kind: EnumDescriptor, number: int) -> str | None:
    """Names carry the enum's own name as prefix (FILE_USE_OPEN of FileUse): the zero's name tells which."""
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = kind.values_by_number.get(number)
    if value is None:
        return str(number)
    return value.name.removeprefix(prefix).lower() if number else None
