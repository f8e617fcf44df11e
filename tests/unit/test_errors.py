"""The errors, their table in docs/errors.md, and their way from one process to another."""

from __future__ import annotations

import inspect

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.agent.messages import error_from_message, error_to_message
from phaul.errors import (
    DeadlineError,
    DefectError,
    InstallError,
    LabError,
    NoSuchMigrationError,
    PhaulError,
    PreflightError,
    RolledBackError,
    SshError,
    UsageError,
    Where,
    error_classes,
    rebuild,
)
from tests.generate_errors import PAGE, documented, render

# docs/design/architecture.md: exit status to where the workload then is.
RANGES = {
    **dict.fromkeys((1, 2, 14, 70), Where.NOT_CONCERNED),
    15: Where.DUMPED,
    **dict.fromkeys(range(10, 14), Where.UNTOUCHED),
    **dict.fromkeys(range(20, 28), Where.SOURCE),
    30: Where.SOURCE,
    40: Where.IN_DOUBT,
    41: Where.LOST,
}
CLASSES = st.sampled_from(documented())
# protobuf's strings are UTF-8.
TEXT = st.text(st.characters(codec="utf-8"))


def test_the_table_is_that_of_the_code() -> None:
    assert PAGE.read_text() == render(), "run `python -m tests.generate_errors`"


@pytest.mark.parametrize("cls", documented())
def test_an_error_says_where_the_workload_runs(cls: type[PhaulError]) -> None:
    assert cls.exit_status in RANGES
    assert cls.where is RANGES[cls.exit_status]
    assert cls.grpc_status in grpc.StatusCode.__members__
    assert cls.grpc_status != "OK"
    assert inspect.getdoc(cls) != inspect.getdoc(cls.__bases__[0]), "its docstring is its line in the table"


def test_an_exit_status_means_one_thing() -> None:
    by_status: dict[int, list[type[PhaulError]]] = {}
    for cls in documented():
        by_status.setdefault(cls.exit_status, []).append(cls)
    shared = {status: found for status, found in by_status.items() if len(found) > 1}
    assert shared == {
        2: [NoSuchMigrationError, UsageError],
        14: [InstallError, SshError],
        20: [DeadlineError, RolledBackError],
    }
    assert issubclass(NoSuchMigrationError, UsageError)
    assert LabError.exit_status == 1


def test_no_two_errors_share_a_code() -> None:
    waiting: list[type[PhaulError]] = [PhaulError]
    names: list[str] = []
    while waiting:
        cls = waiting.pop()
        names.append(cls.__name__)
        waiting += cls.__subclasses__()
    assert sorted(names) == sorted(error_classes())


@given(CLASSES, TEXT, TEXT, TEXT, st.lists(TEXT, max_size=3))
def test_an_error_is_the_same_on_the_other_side(
    cls: type[PhaulError], message: str, hint: str, detail: str, notes: list[str]
) -> None:
    error = cls(message, hint=hint, detail=detail)
    for note in notes:
        error.add_note(note)
    arrived = error_from_message(type(error_to_message(error)).FromString(error_to_message(error).SerializeToString()))
    assert type(arrived) is cls
    assert (arrived.message, arrived.hint, arrived.detail, arrived.notes) == (
        error.message,
        error.hint,
        error.detail,
        tuple(notes),
    )
    assert (arrived.exit_status, arrived.where) == (error.exit_status, error.where)


def test_an_unknown_code_is_a_defect_that_names_it() -> None:
    error = rebuild("NewerError", "it broke", hint="h", detail="d", notes=("n",))
    assert type(error) is DefectError
    assert (error.message, error.hint, error.detail, error.notes) == ("NewerError: it broke", "h", "d", ("n",))


def test_a_hint_of_its_own_comes_before_the_usual_one() -> None:
    assert NoSuchMigrationError("x").hint == NoSuchMigrationError.default_hint
    assert NoSuchMigrationError("x", hint="y").hint == "y"


def test_a_cause_and_notes_stay() -> None:
    with pytest.raises(PreflightError) as raised:
        try:
            raise OSError("inner")
        except OSError as inner:
            raise PreflightError("outer") from inner
    assert isinstance(raised.value.__cause__, OSError)
    raised.value.add_note("the address stays")
    assert raised.value.notes == ("the address stays",)
