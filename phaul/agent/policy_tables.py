"""What may stand in a policy file, and how it is said that something does not. Used by `agent.policy_file`. Pure."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from phaul.migration.policy import Limits, Peers, Policy, UserRule
from phaul.units import parse_size


def _pattern(text: object) -> object:
    if isinstance(text, str) and (not text or text != text.strip() or any(mark.isspace() for mark in text)):
        raise ValueError("a name or pattern is needed, without blanks")
    return text


def _peer(text: object) -> object:
    if isinstance(text, str) and "/" in text:
        return str(ipaddress.ip_network(text))
    return text.lower().rstrip(".") if isinstance(text, str) else text


def _network(text: object) -> object:
    return str(ipaddress.ip_network(text)) if isinstance(text, str) else text


def _size(given: object) -> object:
    return parse_size(given) if isinstance(given, str) else given


def _absolute(text: object) -> object:
    if isinstance(text, str) and not text.startswith("/"):
        raise ValueError("it must begin with /")
    return text


Pattern = Annotated[str, BeforeValidator(_pattern)]
PeerPattern = Annotated[str, BeforeValidator(_peer), BeforeValidator(_pattern)]
PathPattern = Annotated[str, BeforeValidator(_absolute)]
Network = Annotated[str, BeforeValidator(_network)]
Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PeersTable(_Table):
    """`[peers]`."""

    send: tuple[PeerPattern, ...] | None = None
    receive: tuple[PeerPattern, ...] | None = None


class LimitsTable(_Table):
    """`[limits]`."""

    memory: Size | None = None
    migrations: Annotated[int, Field(ge=0)] | None = None


class UserTable(_Table):
    """One of `[[users]]`."""

    users: tuple[Pattern, ...] = ()
    groups: tuple[Pattern, ...] = ()
    owners: tuple[Pattern, ...] = ()
    units: tuple[Pattern, ...] = ()
    cgroups: tuple[PathPattern, ...] = ()
    executables: tuple[PathPattern, ...] = ()
    addresses: tuple[Network, ...] = ()

    @model_validator(mode="after")
    def _says_who_and_what(self) -> UserTable:
        if not self.users and not self.groups:
            raise ValueError("it says not for whom: users or groups is missing")
        if not (self.owners or self.units or self.cgroups or self.executables):
            raise ValueError(
                "it says not which workloads: owners, units, cgroups or executables is missing "
                '(owners = ["*"] is all of them)'
            )
        return self


class PolicyTables(_Table):
    """The whole file."""

    peers: PeersTable = PeersTable()
    limits: LimitsTable = LimitsTable()
    users: tuple[UserTable, ...] = ()

    def policy(self) -> Policy:
        """The same as `migration` has it."""
        return Policy(
            peers=Peers(**self.peers.model_dump()),
            limits=Limits(**self.limits.model_dump()),
            users=tuple(UserRule(**rule.model_dump()) for rule in self.users),
        )
