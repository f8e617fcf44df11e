"""Remove the packet filter rules by which CRIU locks the connections of a tree that it dumps.

Called by `network.identity` when a migration is over, in the network namespace that CRIU worked in. Never touches a
lock that is not known to be of this very tree: it may be of another dump, running or parked, whose connections would be
reset without it.

What CRIU 4.2.1 does in the host's network namespace (criu/netfilter.c, and seen on kernel 6.18):

- ``nftables``: a table ``inet CRIU-<run id>`` with the sets conns4 and conns6 of ``source . port . destination .
  port``, each connection in both directions. The run id is a UUID of the dump, cut to its first 21 characters by a
  buffer of 32. CRIU of before run ids wrote ``CRIU-<PID of the root task>``.
- ``iptables``: a rule in INPUT and one in OUTPUT of the filter table for each connection, which drop what is not marked
  0xC114. The table and the chains stay, empty.
- A refused ``post-dump`` gate removes them; a dump that went through leaves them, and so does a CRIU that was killed.
- A restore removes those of *its* dump, by run id or by connection: on another host there are none, which is no error.
- Connections over loopback are locked like any others.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
import shutil
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from phaul.migration.facts import ConnectionFacts
from phaul.system.process import run

log = structlog.get_logger(__name__)

CRIU_MARK = 0xC114  # SOCCR_MARK, soccr/soccr.h
TABLE_PREFIX = "CRIU-"
NFT_TIMEOUT_SECONDS = 10.0
IPTABLES_TIMEOUT_SECONDS = 10.0
# Which end of a rule is the host's own, by chain.
OWN_END = {"INPUT": "destination", "OUTPUT": "source"}

_TABLE_LINE = re.compile(r"table inet (CRIU-[0-9A-Za-z-]+)")


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of a TCP connection."""

    source: str
    source_port: int
    destination: str
    destination_port: int

    def turned(self) -> Flow:
        """The other direction."""
        return Flow(self.destination, self.destination_port, self.source, self.source_port)


class Owner:
    """Says whether a locked connection is of one tree.

    It is when it is one of the `connections` of the tree, in either direction, or if its end on this host is an
    address that was taken off for the tree's sake (`moved`), or is where the tree listened.
    """

    def __init__(self, connections: Iterable[ConnectionFacts], moved: Collection[str]) -> None:
        self._flows: set[Flow] = set()
        self._listening: set[tuple[str, int]] = set()
        self._moved = {str(ipaddress.ip_address(address)) for address in moved}
        for each in connections:
            if each.protocol != "tcp":
                continue
            local = str(ipaddress.ip_address(each.local_address))
            if each.state == "listen":
                self._listening.add((local, each.local_port))
            else:
                remote = str(ipaddress.ip_address(each.remote_address))
                flow = Flow(local, each.local_port, remote, each.remote_port)
                self._flows |= {flow, flow.turned()}

    def has(self, flow: Flow) -> bool:
        """Whether the connection itself, or an end of it by its address, is the tree's."""
        return flow in self._flows or flow.source in self._moved or flow.destination in self._moved

    def accepted(self, flow: Flow) -> bool:
        """Whether an end is where the tree listened: a connection that was accepted after the tree was looked at."""
        return self._listened(flow.source, flow.source_port) or self._listened(flow.destination, flow.destination_port)

    def has_table(self, flows: Collection[Flow]) -> bool:
        """Whether a table, which is of one dump, is of this tree: one sure flow will do, else all must be likely."""
        return any(map(self.has, flows)) or (bool(flows) and all(map(self.accepted, flows)))

    def _listened(self, address: str, port: int) -> bool:
        anywhere = {"::"} if ":" in address else {"0.0.0.0", "::"}
        return any((each, port) in self._listening for each in {address, *anywhere})


async def remove_locks(root_pid: int, connections: Sequence[ConnectionFacts], moved: Collection[str]) -> None:
    """Remove the locks of one tree; nothing happens where there are none.

    Raises `CommandError` where `nft` or `iptables` refuses; what it got to by then is removed.
    """
    owner = Owner(connections, moved)
    async for name in _tables(root_pid, owner):
        # Declared first: no error when it goes away under our hands.
        rules = f"table inet {name}\ndelete table inet {name}\n"
        await run(["nft", "-f", "-"], stdin=rules, timeout_seconds=NFT_TIMEOUT_SECONDS)
        log.info("criu_lock.removed", table=name, root_pid=root_pid)
    async for program, line in _rules(owner):
        await run([program, "-w", "-D", *shlex.split(line)[1:]], timeout_seconds=IPTABLES_TIMEOUT_SECONDS)
        log.info("criu_lock.removed", program=program, rule=line)


async def find_locks(root_pid: int, connections: Sequence[ConnectionFacts], moved: Collection[str]) -> tuple[str, ...]:
    """Name the locks that `remove_locks` would remove: tables of nftables, rules of iptables."""
    owner = Owner(connections, moved)
    tables = [f"table inet {name}" async for name in _tables(root_pid, owner)]
    return (*tables, *[f"{program} {line}" async for program, line in _rules(owner)])


def parse_table_names(listing: str) -> tuple[str, ...]:
    """Read ``nft list tables``: the names of the tables that CRIU made."""
    lines = (_TABLE_LINE.fullmatch(line.strip()) for line in listing.splitlines())
    return tuple(line[1] for line in lines if line)


def parse_flows(listing: str) -> tuple[Flow, ...]:
    """Read ``nft --json list table`` of a table of CRIU: every element of its sets."""
    flows: list[Flow] = []
    for item in json.loads(listing)["nftables"]:
        elements: list[Any] = item.get("set", {}).get("elem", [])
        for element in elements:
            source, source_port, destination, destination_port = element["concat"]
            flows.append(Flow(source, int(source_port), destination, int(destination_port)))
    return tuple(flows)


def parse_rule(line: str) -> Flow | None:
    """Read one line of ``iptables -S``; None where it is not a lock of CRIU."""
    words = shlex.split(line)
    if len(words) < 2 or words[0] != "-A" or words[1] not in OWN_END or words[-2:] != ["-j", "DROP"]:
        return None
    options = {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("-")}
    marked = any(words[at : at + 2] == ["!", "--mark"] for at in range(len(words)))
    try:
        if not marked or int(options["--mark"].partition("/")[0], 16) != CRIU_MARK or options["-p"] != "tcp":
            return None
        return Flow(
            str(ipaddress.ip_interface(options["-s"]).ip),
            int(options["--sport"]),
            str(ipaddress.ip_interface(options["-d"]).ip),
            int(options["--dport"]),
        )
    except (KeyError, ValueError):
        return None


async def _tables(root_pid: int, owner: Owner) -> AsyncIterator[str]:
    """Every table of this tree."""
    if not shutil.which("nft"):
        return
    listing = await run(["nft", "list", "tables"], timeout_seconds=NFT_TIMEOUT_SECONDS)
    for name in parse_table_names(listing.stdout):
        if name != f"{TABLE_PREFIX}{root_pid}":
            table = await run(
                ["nft", "--json", "list", "table", "inet", name], timeout_seconds=NFT_TIMEOUT_SECONDS, check=False
            )
            # Its CRIU may have removed it by now.
            if table.exit_status != 0 or not owner.has_table(parse_flows(table.stdout)):
                continue
        yield name


async def _rules(owner: Owner) -> AsyncIterator[tuple[str, str]]:
    """Every rule of this tree, with the program that has it."""
    for program in ("iptables", "ip6tables"):
        if not shutil.which(program):
            continue
        # A kernel without this family, or without iptables at all, has no locks of it either.
        listing = await run([program, "-w", "-S"], timeout_seconds=IPTABLES_TIMEOUT_SECONDS, check=False)
        for line in listing.stdout.splitlines():
            flow = parse_rule(line)
            if flow is not None and (owner.has(flow) or owner.accepted(flow)):
                yield program, line
