"""The fence: packet filter rules that keep every packet away from the addresses of one migration, on this host.

Called by `network.identity` for both agents: the source fences just before the freeze, the destination before the
address appears there. While a fence stands, neither a SYN/ACK nor a RST leaves for its addresses, and nobody answers
ARP or neighbour solicitations for them, so both hosts may hold an address at once. Never touches tables of others.

A fence is the tables ``inet phaul-ID`` and ``arp phaul-ID`` (the latter only with IPv4 addresses), where ID is the
migration: they outlive the agent, and can be found again by their name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable, Sequence

from phaul.errors import DefectError, SwitchoverError
from phaul.network.closing import close_later
from phaul.network.criu_locks import CRIU_MARK
from phaul.network.nft_batch import remove_tables
from phaul.system.process import CommandError, run

TABLE_PREFIX = "phaul-"
FAMILIES = ("inet", "arp")
# Before connection tracking (-200) and any DNAT (-100), so that neither ever sees a packet that is dropped here, and
# before "raw" (-300), where a rule of the administrator could take a packet out of our sight.
PRIORITY = -400
NFT_TIMEOUT_SECONDS = 10.0
NFT_HINT = "Install nftables (`apt-get install nftables`); `phaul doctor` says what else is missing."

_MIGRATION_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_TABLE_LINE = re.compile(r"table (?:inet|arp|netdev) phaul-([0-9A-Za-z][0-9A-Za-z._-]{0,63})")


def table_name(migration_id: str) -> str:
    """Give the name of both tables of a migration. Raises `DefectError` for an ID that cannot be part of a name."""
    if not _MIGRATION_ID.fullmatch(migration_id):
        raise DefectError(f"{migration_id!r} is not a migration ID")
    return TABLE_PREFIX + migration_id


def removal_rules(migration_id: str) -> str:
    """Write the part of an nft transaction after which no table of this migration is left, whatever was there.

    A table is declared first and deleted then: `destroy` came with nft 1.0.7, Debian 12 has 1.0.6.
    """
    name = table_name(migration_id)
    return "".join(f"table {family} {name}\ndelete table {family} {name}\n" for family in FAMILIES)


def fence_rules(migration_id: str, addresses: Sequence[str]) -> str:
    """Write the nft transaction that puts up the fence, in place of one that this migration may have had.

    A fence has no effect where its addresses are not local, so that it may stand long before they come and after they
    went: packets that are forwarded pass, packets from the host that has an address now do, and so do this host's own
    questions where that is. What a host that holds the address would say is what is dropped.

    One kind of packet passes: those with CRIU's mark, by which a restore hands a socket the FIN that its peer had sent
    before the dump (send_fin in soccr/soccr.c, CRIU 4.2). They go from this host to itself; without them a tree with
    a connection in CLOSE_WAIT cannot be restored behind a fence.
    """
    name = table_name(migration_id)
    four, six = _sorted(addresses)
    unmarked = f"meta mark != {CRIU_MARK:#x}"
    prerouting: list[str] = []
    input_: list[str] = []
    output: list[str] = []
    for family, there in (("ip", four), ("ip6", six)):
        if there:
            anyone = _set(map(str, there))
            prerouting.append(f"{family} daddr {anyone} fib daddr type local {unmarked} drop")
            output.append(f"{family} saddr {anyone} drop")
            output.append(f"{family} daddr {anyone} fib daddr type local {unmarked} drop")
    if six:
        # A solicitation goes to a multicast address, so only its target tells: 16 bytes, 8 after the start of the
        # ICMPv6 header (RFC 4861, section 4.3). nft has a name for that field only since 1.0.8.
        targets = _set(f"0x{address.packed.hex()}" for address in six)
        input_.append(f"icmpv6 type nd-neighbor-solicit @th,64,128 {targets} drop")
        output.append(f"icmpv6 type nd-neighbor-advert @th,64,128 {targets} drop")
    text = removal_rules(migration_id)
    text += _table("inet", name, {"prerouting": prerouting, "input": input_, "output": output})
    if four:
        anyone = _set(map(str, four))
        arp = {"input": [f"arp daddr ip {anyone} drop"], "output": [f"arp saddr ip {anyone} drop"]}
        text += _table("arp", name, arp)
    return text


async def engage(migration_id: str, addresses: Sequence[str]) -> None:
    """Put up the fence of a migration, at one stroke. Raises `SwitchoverError` with everything as it was."""
    rules = fence_rules(migration_id, addresses)
    try:
        await run(["nft", "-f", "-"], stdin=rules, timeout_seconds=NFT_TIMEOUT_SECONDS)
    except CommandError as error:
        raise SwitchoverError(
            f"the fence around {', '.join(addresses)} could not be put up: {error.message}",
            hint=NFT_HINT,
            detail=error.detail,
        ) from error


async def release(migration_id: str) -> None:
    """Lift the fence of a migration, at one stroke; nothing happens where there is none.

    Raises `NftablesError` with the fence still standing.
    """
    name = table_name(migration_id)
    # In a thread: whoever else changes the packet filter just then is waited for.
    close_later(await asyncio.to_thread(remove_tables, [(family, name) for family in FAMILIES]))


async def list_fences() -> tuple[str, ...]:
    """Give the migrations that have a fence on this host, sorted, whoever put it up."""
    listing = await run(["nft", "list", "tables"], timeout_seconds=NFT_TIMEOUT_SECONDS)
    return parse_fences(listing.stdout)


def parse_fences(listing: str) -> tuple[str, ...]:
    """Read ``nft list tables``."""
    lines = (_TABLE_LINE.fullmatch(line.strip()) for line in listing.splitlines())
    return tuple(sorted({line[1] for line in lines if line}))


def _sorted(addresses: Sequence[str]) -> tuple[list[ipaddress.IPv4Address], list[ipaddress.IPv6Address]]:
    """Split by family, without doubles, in order."""
    four: set[ipaddress.IPv4Address] = set()
    six: set[ipaddress.IPv6Address] = set()
    for text in addresses:
        address = ipaddress.ip_address(text)
        if isinstance(address, ipaddress.IPv4Address):
            four.add(address)
        else:
            six.add(address)
    return sorted(four), sorted(six)


def _set(elements: Iterable[str]) -> str:
    return "{ " + ", ".join(elements) + " }"


def _table(family: str, name: str, chains: dict[str, list[str]]) -> str:
    text = f"table {family} {name} {{\n"
    for chain, rules in chains.items():
        text += f"\tchain {chain} {{\n\t\ttype filter hook {chain} priority {PRIORITY}; policy accept;\n"
        text += "".join(f"\t\t{rule}\n" for rule in rules)
        text += "\t}\n"
    return text + "}\n"
