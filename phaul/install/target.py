"""What a person types for a host that is reached over SSH: [ssh://][USER@]HOST[:PORT]. Used by `cli` and `install`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from phaul.errors import UsageError

SCHEME = "ssh://"
DEFAULT_USER = "root"
_HINT = "Write root@b.example, root@b.example:2222 or ssh://root@[fd00::2]:2222."
_TARGET = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?:\[(?P<ip6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?))"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True, slots=True)
class SshTarget:
    """Whom to log in as, and where. `port` 0 and `user` "": as the SSH configuration says, or else the usual."""

    host: str
    user: str = ""
    port: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user or DEFAULT_USER}@{host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, slots=True)
class Login:
    """How to log in. `ask` is called for a password when keys did not do; it gives None where nobody can be asked."""

    identities: tuple[Path, ...] = ()
    accept_new_host_key: bool = False
    known_hosts: Path | None = None  # default: ~/.ssh/known_hosts
    ask: Callable[[str], str | None] = lambda prompt: None


def parse_target(text: str) -> SshTarget:
    """Read what was typed; raises `UsageError` where it names no host."""
    found = _TARGET.fullmatch(text.strip().removeprefix(SCHEME))
    if found is None or int(found["port"] or 0) > 65535:
        raise UsageError(f"{text!r} names no host to log in to", hint=_HINT)
    return SshTarget(found["ip6"] or found["host"], found["user"] or "", int(found["port"] or 0))
