"""Plain values and the messages that carry them: the same fields on both sides, and nothing lost on the way."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from enum import StrEnum
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from phaul.agent.messages import error_from_message, error_to_message, from_message, to_message, wire_text
from phaul.errors import PhaulError, TransferError, error_classes
from phaul.migration import events, facts
from phaul.migration.facts import FileFacts, FileUse
from phaul.migration.hooks import HookScene
from phaul.migration.peer import Aborted, Reservation, RestoredCopy
from phaul.rpc.v1 import agent_pb2, facts_pb2, peer_pb2

# Every dataclass that travels, with its message. Those of facts.py and events.py are named like theirs.
TRAVELLERS: dict[type[Any], type[Message]] = {
    **{
        kind: getattr(stubs, kind.__name__)
        for module, stubs in ((facts, facts_pb2), (events, agent_pb2))
        for kind in vars(module).values()
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == module.__name__
    },
    Reservation: peer_pb2.PrepareRequest,
    RestoredCopy: peer_pb2.RestoreReply,
    Aborted: peer_pb2.AbortReply,
    HookScene: peer_pb2.HookScene,
}
CASES = pytest.mark.parametrize(
    ("kind", "message"), [pytest.param(*case, id=case[0].__name__) for case in TRAVELLERS.items()]
)

# Any name that the kernel may have: bytes that are no UTF-8 stand as lone surrogates (os.fsdecode).
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Co"])) | st.binary(max_size=20).map(os.fsdecode)
INTEGERS = {
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1),
}
ERRORS = st.builds(
    lambda cls, message, hint, detail: cls(message, hint=hint, detail=detail),
    st.sampled_from(list(error_classes().values())),
    TEXT,
    TEXT,
    TEXT,
)


def integer_type(descriptor: Any) -> str:
    """The name of a field's type, as .proto files have it."""
    names = {getattr(descriptor, f"TYPE_{name.upper()}"): name for name in INTEGERS}
    return names[descriptor.type]


def values(annotation: Any, descriptor: Any) -> st.SearchStrategy[Any]:
    """Any value of a field."""
    if isinstance(annotation, types.UnionType):
        (inner,) = (option for option in typing.get_args(annotation) if option is not types.NoneType)
        return st.none() | values(inner, descriptor)
    if typing.get_origin(annotation) is tuple:
        return st.lists(values(typing.get_args(annotation)[0], descriptor), max_size=3).map(tuple)
    if annotation is PhaulError:
        return ERRORS
    if annotation is float:
        return st.floats(0, 1e6)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return INTEGERS[integer_type(descriptor)]
    if annotation is str:
        return TEXT
    if issubclass(annotation, StrEnum):
        return st.sampled_from(annotation)
    return instances(annotation, TRAVELLERS[annotation])


def instances(kind: type[Any], message: type[Message]) -> st.SearchStrategy[Any]:
    """Any value of a dataclass."""
    hints = typing.get_type_hints(kind)
    fields = message.DESCRIPTOR.fields_by_name
    return st.builds(
        kind, **{field.name: values(hints[field.name], fields[field.name]) for field in dataclasses.fields(kind)}
    )


def comparable(value: Any) -> Any:
    """The value with errors as what they say: an exception equals only itself."""
    if isinstance(value, PhaulError):
        return (value.code, value.message, value.hint, value.detail, value.notes)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: comparable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return tuple(map(comparable, value)) if isinstance(value, tuple) else value


def test_all_that_travels_is_here() -> None:
    assert {facts.FileFacts, facts.CheckReport, events.Finished, events.Started} < TRAVELLERS.keys()


@CASES
def test_every_field_has_its_place(kind: type[Any], message: type[Message]) -> None:
    missing = {field.name for field in dataclasses.fields(kind)} - set(message.DESCRIPTOR.fields_by_name.keys())
    assert not missing, f"{message.DESCRIPTOR.full_name} lacks them: they would be lost between the agents"


@CASES
@given(data=st.data())
def test_what_arrives_is_what_was_sent(kind: type[Any], message: type[Message], data: st.DataObject) -> None:
    value = data.draw(instances(kind, message))
    wire = to_message(value, message).SerializeToString()
    assert comparable(from_message(message.FromString(wire), kind)) == comparable(value)


@pytest.mark.parametrize(
    ("kind", "enum"),
    [
        (facts.FileUse, facts_pb2.FileUse),
        (facts.Severity, facts_pb2.Severity),
        (events.Phase, agent_pb2.Phase),
        (events.Role, agent_pb2.Role),
        (events.Outcome, agent_pb2.Outcome),
    ],
)
def test_enumerations_have_the_same_members(kind: type[StrEnum], enum: Any) -> None:
    names = set(enum.keys())
    (unspecified,) = (name for name in names if name.endswith("_UNSPECIFIED"))
    prefix = unspecified.removesuffix("UNSPECIFIED")
    assert {name.removeprefix(prefix) for name in names - {unspecified}} == set(kind.__members__)


@pytest.mark.parametrize(("number", "named"), [(0, "UNSPECIFIED"), (99, "99")])
def test_an_enumerator_that_is_not_known_is_refused(number: int, named: str) -> None:
    message = facts_pb2.FileFacts(path="/x")
    message.use = number  # type: ignore[assignment]
    with pytest.raises(ValueError, match=rf"use is {named}"):
        from_message(message, FileFacts)


def test_a_field_that_has_no_place_is_a_defect() -> None:
    with pytest.raises(ValueError, match="has no field pid"):
        to_message(RestoredCopy(1, 2, 3), facts_pb2.Problem)


def test_a_message_may_have_more_fields() -> None:
    message = peer_pb2.RestoreReply(pid=1, page_bytes=2, restore_us=3)
    newer = message.SerializeToString() + bytes([15 << 3, 1])
    assert from_message(peer_pb2.RestoreReply.FromString(newer), RestoredCopy) == RestoredCopy(1, 2, 3)


def test_a_name_that_is_not_utf8_can_be_shown_and_arrives_as_it_was() -> None:
    name = os.fsdecode(b"/tmp/caf\xe9")
    wire_text(name).encode()
    message = to_message(FileFacts(name, FileUse.OPEN), facts_pb2.FileFacts)
    assert os.fsencode(from_message(message, FileFacts).path) == b"/tmp/caf\xe9"
    error = TransferError(f"{name} is gone", hint=name, detail=name)
    error.add_note(name)
    assert comparable(error_from_message(error_to_message(error))) == comparable(error)
