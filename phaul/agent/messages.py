"""Between plain values and protobuf messages, field by field: the names on both sides are the same.

Used by everything in `agent` that speaks gRPC. An enumeration travels as its prefixed upper-case name
(`FileUse.MAPPED` is FILE_USE_MAPPED); an absent message is None. A file or a command whose name is not UTF-8 arrives
as it was.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.message import Message

from phaul.errors import PhaulError, rebuild
from phaul.rpc.v1 import facts_pb2

M = TypeVar("M", bound=Message)
D = TypeVar("D")

# A name in Linux is bytes. Those that are no UTF-8 are U+DC80 to U+DCFF in Python (PEP 383), which no protobuf string
# may hold; they travel as characters of the last private plane, which no name has.
_STRAY_BYTES = {0xDC00 + byte: 0x10FE00 + byte for byte in range(0x80, 0x100)}
_FROM_STRAY_BYTES = {travelling: stray for stray, travelling in _STRAY_BYTES.items()}


def wire_text(text: str) -> str:
    """Give a text as it can stand in a message."""
    return text if text.isascii() else text.translate(_STRAY_BYTES)


def to_message(value: Any, message_class: type[M]) -> M:
    """Make the message whose fields are those of a dataclass. Unknown field names raise ValueError (a defect)."""
    message = message_class()
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        descriptor = message.DESCRIPTOR.fields_by_name.get(field.name)
        if descriptor is None:
            raise ValueError(f"{message.DESCRIPTOR.name} has no field {field.name}")
        if content is None:
            continue
        if descriptor.is_repeated:
            getattr(message, field.name).extend(_scalar_or_message(item, descriptor) for item in content)
        elif descriptor.message_type is not None:
            getattr(message, field.name).CopyFrom(_scalar_or_message(content, descriptor))
        else:
            setattr(message, field.name, _scalar_or_message(content, descriptor))
    return message


def _scalar_or_message(value: Any, descriptor: Any) -> Any:
    if isinstance(value, PhaulError):
        return error_to_message(value)
    if descriptor.message_type is not None:
        return to_message(value, descriptor.message_type._concrete_class)
    if descriptor.enum_type is not None:
        return enum_number(value, descriptor)
    return wire_text(value) if isinstance(value, str) else value


def enum_number(value: StrEnum, descriptor: Any) -> int:
    """The number of an enumeration's member in the message's enumeration."""
    enum = descriptor.enum_type
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return int(enum.values_by_name[prefix + value.name].number)


def from_message(message: Message, kind: type[D]) -> D:
    """Make the dataclass of type `kind`; a message may have more fields. ValueError for an unknown enumerator."""
    values: dict[str, Any] = {}
    for name, annotation in _annotations(kind).items():  # type: ignore[arg-type]  # a class is hashable
        descriptor = message.DESCRIPTOR.fields_by_name[name]
        content = getattr(message, name)
        if descriptor.is_repeated:
            (item, *_) = typing.get_args(annotation)
            values[name] = tuple(_value(entry, item, descriptor) for entry in content)
        elif descriptor.message_type is not None and not message.HasField(name):
            values[name] = None
        elif descriptor.enum_type is not None and content == 0 and name in _defaults(kind):  # type: ignore[arg-type]
            pass  # not said
        else:
            values[name] = _value(content, annotation, descriptor)
    return kind(**values)


def _value(content: Any, annotation: Any, descriptor: Any) -> Any:
    if isinstance(annotation, types.UnionType):
        annotation = next(option for option in typing.get_args(annotation) if option is not types.NoneType)
    if annotation is PhaulError:
        return error_from_message(content)
    if descriptor.message_type is not None:
        return from_message(content, annotation)
    if descriptor.enum_type is not None:
        enum = descriptor.enum_type
        prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
        known = enum.values_by_number.get(content)  # a newer peer may have more of them
        name = known.name.removeprefix(prefix) if known else str(content)
        if name not in annotation.__members__:
            raise ValueError(f"{descriptor.full_name} is {name}")
        return annotation[name]
    return _python_text(content) if isinstance(content, str) else content


def _python_text(text: str) -> str:
    return text if text.isascii() else text.translate(_FROM_STRAY_BYTES)


@functools.cache
def _annotations(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@functools.cache
def _defaults(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING)


def error_to_message(error: PhaulError) -> facts_pb2.ErrorInfo:
    """Put an error on the wire."""
    return facts_pb2.ErrorInfo(
        code=error.code,
        message=wire_text(error.message),
        hint=wire_text(error.hint),
        detail=wire_text(error.detail),
        notes=map(wire_text, error.notes),
    )


def error_from_message(info: facts_pb2.ErrorInfo) -> PhaulError:
    """Take an error off the wire."""
    return rebuild(
        info.code,
        _python_text(info.message),
        hint=_python_text(info.hint),
        detail=_python_text(info.detail),
        notes=tuple(map(_python_text, info.notes)),
    )
