"""Every failure that phaul reports, with what a person and a script need to go on.

Each class answers two questions: where does the workload run now (`where`), and what should be done next (`hint`).
The class name is the stable code that travels over gRPC and stands in `--json`; `exit_status` is what `phaul` exits
with; `grpc_status` names the gRPC code that `agent` maps it to (this module never imports grpc). The table of all of
them, `docs/errors.md`, is made from this file by a test.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Where(StrEnum):
    """Where the workload runs at the moment an error is reported."""

    UNTOUCHED = "untouched on the source"
    SOURCE = "running on the source"
    DESTINATION = "running on the destination"
    IN_DOUBT = "in doubt"
    LOST = "on neither host; its images are kept"
    DUMPED = "no copy of it here; the dump is as it was"
    NOT_CONCERNED = "not concerned"


class PhaulError(Exception):
    """The root of all errors that phaul raises on purpose.

    `message` is one sentence, `hint` says what to do next, `detail` may be long (log excerpts). An exception that
    caused it stays its ``__cause__``; failures met while undoing are added with ``add_note`` and never replace it.
    """

    exit_status: ClassVar[int] = 70
    grpc_status: ClassVar[str] = "INTERNAL"
    where: ClassVar[Where] = Where.NOT_CONCERNED
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.detail = detail

    @property
    def code(self) -> str:
        """The stable name of this kind of error."""
        return type(self).__name__

    @property
    def notes(self) -> tuple[str, ...]:
        """What went wrong while undoing, in order."""
        return tuple(getattr(self, "__notes__", ()))


class DefectError(PhaulError):
    """phaul itself is wrong: something happened that its authors thought impossible."""

    default_hint = "Please report this with the agent's log of both hosts."


class UsageError(PhaulError):
    """What was typed or configured cannot be used as it is."""

    exit_status = 2
    grpc_status = "INVALID_ARGUMENT"


class LabError(PhaulError):
    """The lab could not be brought up, entered or taken down."""

    exit_status = 1
    grpc_status = "FAILED_PRECONDITION"


class NoSuchMigrationError(UsageError):
    """There is no migration with this ID on this host."""

    grpc_status = "NOT_FOUND"
    default_hint = "`phaul status` lists the migrations this host knows."


class PreflightError(PhaulError):
    """The migration was refused before anything was touched."""

    exit_status = 10
    grpc_status = "FAILED_PRECONDITION"
    where = Where.UNTOUCHED


class UnreachableError(PhaulError):
    """An agent does not answer, or speaks another version."""

    exit_status = 11
    grpc_status = "UNAVAILABLE"
    where = Where.UNTOUCHED


class NotTrustedError(PhaulError):
    """One side may not do what was asked of it."""

    exit_status = 12
    grpc_status = "PERMISSION_DENIED"
    where = Where.UNTOUCHED


class PolicyError(PhaulError):
    """The policy of one of the hosts does not allow it."""

    exit_status = 13
    grpc_status = "PERMISSION_DENIED"
    where = Where.UNTOUCHED
    default_hint = "The policy is /etc/phaul/policy.toml of the host that refused; `phaul policy show` there shows it."


class InstallError(PhaulError):
    """phaul could not be brought to a host, or could not be packaged."""

    exit_status = 14
    grpc_status = "FAILED_PRECONDITION"


class SshError(InstallError):
    """Another host could not be logged in to over SSH, or a command there failed."""


class RolledBackError(PhaulError):
    """Something failed before COMMIT; the workload runs on the source as before."""

    exit_status = 20
    grpc_status = "ABORTED"
    where = Where.SOURCE


class DeadlineError(RolledBackError):
    """A deadline that the person set has passed before COMMIT; the workload runs on the source as before."""

    exit_status = 20
    default_hint = "Give it more time with --timeout or --freeze-timeout, or make the workload smaller."


class DumpError(RolledBackError):
    """CRIU could not dump the workload; it runs on the source as before."""

    exit_status = 21


class TransferError(RolledBackError):
    """Memory or images did not arrive whole; the workload runs on the source as before."""

    exit_status = 22


class RestoreError(RolledBackError):
    """CRIU could not restore the workload on the destination; it runs on the source as before."""

    exit_status = 23


class SwitchoverError(RolledBackError):
    """The addresses could not be moved; the workload runs on the source as before."""

    exit_status = 24


class CancelledByUserError(RolledBackError):
    """The migration was cancelled before COMMIT; the workload runs on the source as before."""

    exit_status = 25


class DowntimeError(RolledBackError):
    """The workload would have stood still for longer than was wished; it was not frozen, and runs on the source."""

    exit_status = 26


class HookError(RolledBackError):
    """An action script failed or took too long before COMMIT; the workload runs on the source as before."""

    exit_status = 27
    default_hint = "Its output is shown; `phaul check` lists the action scripts, docs/hooks.md says what they are told."


class NotRestoredError(PhaulError):
    """A dump was refused, or could not be restored: nothing of a copy is left, and the dump is as it was."""

    exit_status = 15
    grpc_status = "ABORTED"
    where = Where.DUMPED


class LeftoversError(RolledBackError):
    """The workload runs on the source, but undoing left something behind, which is listed."""

    exit_status = 30


class InDoubtError(PhaulError):
    """The source tree is dead or may be, and the destination has not confirmed that it runs the workload."""

    exit_status = 40
    grpc_status = "UNKNOWN"
    where = Where.IN_DOUBT


class LostError(PhaulError):
    """Neither host runs the workload; the images are kept at the path given."""

    exit_status = 41
    grpc_status = "DATA_LOSS"
    where = Where.LOST


def error_classes() -> dict[str, type[PhaulError]]:
    """Give every error class by its stable code, parents before children."""
    found: dict[str, type[PhaulError]] = {}
    waiting: list[type[PhaulError]] = [PhaulError]
    while waiting:
        cls = waiting.pop(0)
        found[cls.__name__] = cls
        waiting.extend(cls.__subclasses__())
    return found


def rebuild(code: str, message: str, *, hint: str = "", detail: str = "", notes: tuple[str, ...] = ()) -> PhaulError:
    """Make the error again that another process reported; an unknown code becomes a `DefectError`."""
    cls = error_classes().get(code)
    error = (
        cls(message, hint=hint, detail=detail) if cls else DefectError(f"{code}: {message}", hint=hint, detail=detail)
    )
    for note in notes:
        error.add_note(note)
    return error
