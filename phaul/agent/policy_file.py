"""The policy file of an agent: read at the start, again when it changes, and on SIGHUP.

Owned by `agent.server`; `phaul policy check` reads with it as well. A file that is wrong keeps an agent from starting;
later the policy from before stays in force, and the log and `phaul policy show` say so.
"""

from __future__ import annotations

import os
import stat
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import ValidationError

from phaul.agent.policy_tables import PolicyTables
from phaul.config import DEFAULT_POLICY
from phaul.errors import PhaulError, UsageError
from phaul.migration.policy import Policy

log = structlog.get_logger(__name__)

LARGEST_BYTES = 1 << 20
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read_policy(path: Path, *, trusted: bool = True) -> Policy:
    """Read a policy file. Raises `UsageError` that names the place of each mistake.

    With `trusted`, which an agent needs, also for one that others than root could have written.
    """
    try:
        found = path.stat()
        content = path.read_bytes() if found.st_size <= LARGEST_BYTES else b""
    except OSError as error:
        raise UsageError(f"the policy {path} cannot be read: {error.strerror}") from error
    if found.st_size > LARGEST_BYTES:
        raise UsageError(f"the policy {path} is larger than {LARGEST_BYTES} bytes")
    if trusted and (found.st_mode & OTHERS_MAY_WRITE or found.st_uid not in (0, os.geteuid())):
        raise UsageError(
            f"the policy {path} could be changed by others than root",
            hint=f"`chown root:root {path}` and `chmod 0644 {path}`.",
        )
    return parse_policy(content, str(path))


def parse_policy(content: bytes, name: str) -> Policy:
    """Read what a policy file holds; `name` is what the error calls it."""
    try:
        return PolicyTables.model_validate(tomllib.loads(content.decode())).policy()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the policy {name} is no TOML: {error}") from error
    except ValidationError as error:
        lines = [f"{_place(each['loc'])}: {_said(each['msg'])}" for each in error.errors()]
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise UsageError(
            f"the policy {name} is wrong: {lines[0]}{more}",
            hint="docs/policy.md has every entry.",
            detail="\n".join(lines),
        ) from error


def _place(location: tuple[int | str, ...]) -> str:
    """`users.0.owners.1` as a person counts: users[1].owners[2]."""
    text = ""
    for each in location:
        text += f"[{each + 1}]" if isinstance(each, int) else f".{each}" if text else each
    return text or "the file"


def _said(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return {"Extra inputs are not permitted": "there is no such entry"}.get(message, message)


class PolicyFile:
    """The policy in force.

    Attributes:
        problem: why the file as it is now is not in force; "" where it is, or where there is none.
        changed: called with the policy when another one comes into force.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        self.changed: Callable[[Policy], None] = lambda _: None
        self.loaded_unix_us = 0
        self._policy = Policy()
        self._seen: tuple[int, ...] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a file; without one the default is in force."""
        return bool(self._seen)

    def start(self) -> None:
        """Read it for the first time. Raises `UsageError`; a file at another place than the usual one must exist."""
        if self.path != DEFAULT_POLICY or self.path.exists():
            read_policy(self.path)
        self.current()

    def current(self) -> Policy:
        """The policy in force, read again if the file is another than before."""
        seen = _look(self.path)
        if seen != self._seen:
            self._seen = seen
            self._take_up()
        return self._policy

    def reload(self) -> Policy:
        """Read it again whether or not it looks changed."""
        self._seen = None
        return self.current()

    def _take_up(self) -> None:
        try:
            policy = read_policy(self.path) if self._seen else Policy()
        except PhaulError as error:
            self.problem = error.message
            log.error(
                "policy.not_taken", path=str(self.path), reason=error.message, meaning="the one before is in force"
            )
            return
        self.problem = ""
        self.loaded_unix_us = time.time_ns() // 1000
        self._policy = policy
        log.info("policy.in_force", path=str(self.path), exists=bool(self._seen))
        self.changed(policy)


def _look(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    except OSError:
        return (-1,)
    return (found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode, found.st_uid)
