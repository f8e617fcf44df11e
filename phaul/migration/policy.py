"""Who may do what on a host: the policy file as values, and what follows from it. Pure.

`agent.policy_file` reads it, `agent.gatekeeper` asks. Every question is answered with the reason why not, or "".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from phaul.units import format_bytes

SELF = "self"  # an owner: whoever asks
UNIT_SUFFIXES = (".service", ".scope", ".slice")


@dataclass(frozen=True, slots=True)
class Peers:
    """Other hosts: names with `*`, addresses, networks. None is any that has a certificate."""

    send: tuple[str, ...] | None = None
    receive: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What is too much, whoever asks. None is no limit."""

    memory: int | None = None  # bytes of one workload, in either direction
    migrations: int | None = None  # at once, in both directions together


@dataclass(frozen=True, slots=True)
class UserRule:
    """What some users may migrate. Every list that is there must hold, one entry of it suffices."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    executables: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """All of it. Without a file: root alone on the socket, every host with a certificate, no limits."""

    peers: Peers = Peers()
    limits: Limits = Limits()
    users: tuple[UserRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks over the socket. Names are of the user database, "" where it has none."""

    user_id: int
    user: str
    groups: tuple[str, ...]  # names and numbers
    may_all: bool  # root, or the user that the agent runs as

    def __str__(self) -> str:
        return f"{self.user or 'user'} ({self.user_id})"

    @property
    def names(self) -> frozenset[str]:
        """What rules call them."""
        return frozenset({self.user, str(self.user_id)} - {""})


@dataclass(frozen=True, slots=True)
class Belonging:
    """What a process of a workload belongs to. The executable is "" where the path is not the file that runs."""

    pid: int
    owners: frozenset[str]  # name and number of its user; none where its user IDs differ from each other
    cgroup: str
    executable: str

    @property
    def units(self) -> tuple[str, ...]:
        """The systemd units that it is in, as its control group's path says."""
        return tuple(each for each in self.cgroup.split("/") if each.endswith(UNIT_SUFFIXES))


def why_peer_may_not(patterns: Sequence[str] | None, names: Iterable[str]) -> str:
    """Why a host with a certificate for these names and addresses is none of those meant; "" where it is."""
    known = [name.lower().rstrip(".") for name in names]
    if patterns is None or any(_is_peer(name, pattern) for name in known for pattern in patterns):
        return ""
    return f"the policy does not name {', '.join(known) or 'it'}"


def why_too_many(limits: Limits, under_way: int) -> str:
    """Why there may not be another migration now."""
    if limits.migrations is None or under_way < limits.migrations:
        return ""
    return f"{under_way} migrations are under way, and the policy allows {limits.migrations} at once"


def why_too_big(limits: Limits, memory_bytes: int) -> str:
    """Why a workload of this size may not migrate."""
    if limits.memory is None or memory_bytes <= limits.memory:
        return ""
    return f"it has {format_bytes(memory_bytes)} of memory, and the policy allows {format_bytes(limits.memory)}"


def is_named(policy: Policy, person: Person) -> bool:
    """Whether there is a rule for a person at all."""
    return person.may_all or any(_is_for(rule, person) for rule in policy.users)


def why_person_may_not(policy: Policy, person: Person, workload: Sequence[Belonging], addresses: Sequence[str]) -> str:
    """Why a person may not migrate a workload with these addresses; one rule must allow all of it."""
    if person.may_all:
        return ""
    rules = [rule for rule in policy.users if _is_for(rule, person)]
    if not rules:
        return f"the policy has no rule for {person}"
    reasons = [_why_rule_does_not(rule, person, workload, addresses) for rule in rules]
    return "" if "" in reasons else reasons[-1]


def _is_for(rule: UserRule, person: Person) -> bool:
    return bool(person.names & set(rule.users)) or bool(set(person.groups) & set(rule.groups))


def _why_rule_does_not(rule: UserRule, person: Person, workload: Sequence[Belonging], addresses: Sequence[str]) -> str:
    if not workload:
        return "the workload is gone"
    for each in workload:
        owners = {name for owner in rule.owners for name in (person.names if owner == SELF else {owner})}
        if rule.owners and "*" not in owners and not each.owners & owners:
            whose = "/".join(sorted(each.owners)) or "several users"
            return f"the policy does not let {person} migrate processes of {whose}, such as {each.pid}"
        if rule.units and not _match(each.units, rule.units):
            return f"the policy does not let {person} migrate process {each.pid} of {each.cgroup}"
        if rule.cgroups and not _match([each.cgroup], rule.cgroups):
            return f"the policy does not let {person} migrate process {each.pid} of {each.cgroup}"
    root = workload[0]
    if rule.executables and not _match([root.executable], rule.executables):
        return f"the policy does not let {person} migrate {root.executable or 'an executable that cannot be told'}"
    allowed = [ipaddress.ip_network(network) for network in rule.addresses]
    for address in addresses:
        ip = ipaddress.ip_address(address)
        if not any(ip in network for network in allowed if network.version == ip.version):
            return f"the policy does not let {person} move the address {address}"
    return ""


def _match(texts: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for text in texts if text for pattern in patterns)


def _is_peer(name: str, pattern: str) -> bool:
    if "/" in pattern:
        try:
            ip = ipaddress.ip_address(name)
        except ValueError:
            return False
        network = ipaddress.ip_network(pattern)
        return ip.version == network.version and ip in network
    return fnmatchcase(name, pattern)
