"""The fence around the links of a workload's own network namespace: every frame is dropped, whatever it carries.

Called by `network.own_links`. It stands in the host's namespace, in the table ``netdev phaul-ID`` where ID is the
migration, so that it outlives the agent and needs nothing of the workload's namespace, which CRIU dumps. Around a veth
pair it closes the outer end; around a macvlan the frames of its MAC on the device that it stands on, around an ipvlan,
which has that device's MAC, those of its addresses. What either and its siblings on the same host say to each other
passes by that device: there CRIU's own lock keeps connections safe.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from ipaddress import ip_address, ip_interface

from phaul.errors import SwitchoverError
from phaul.migration.facts import LinkFacts
from phaul.network.closing import close_later
from phaul.network.fence import NFT_HINT, NFT_TIMEOUT_SECONDS, parse_fences, table_name
from phaul.network.nft_batch import remove_tables
from phaul.system.process import CommandError, run

FAMILY = "netdev"
PRIORITY = -500  # before whatever else filters there (Documentation/networking/nf_flowtable: devices have a chain each)


def fence_rules(migration_id: str, links: Sequence[LinkFacts], leaving: Sequence[str] = ()) -> str:
    """Write the nft transaction that puts it up, in place of one that this migration may have had.

    Addresses that are `leaving` the network stay outside: nobody else has them, and their peers are to hear the end.
    """
    name = table_name(migration_id)
    text = f"table {FAMILY} {name}\ndelete table {FAMILY} {name}\ntable {FAMILY} {name} {{\n"
    for number, link in enumerate(links):
        for hook, end in (("ingress", "daddr"), ("egress", "saddr")):
            match link.kind:
                case "veth":
                    inward = hook == "egress"  # of the outer end
                    rules = [*_let_through(leaving, "" if inward else nobodys_mac(migration_id)), "drop"]
                case "macvlan":
                    inward = hook == "ingress"
                    passing = _let_through(leaving, "" if inward else nobodys_mac(migration_id))
                    rules = [*passing, f"ether {end} {link.mac} drop"]
                case _:
                    staying = [each for each in link.addresses if each.partition("/")[0] not in leaving]
                    rules = _of_addresses(end, (*staying, *link.link_local))
            text += (
                f'\tchain {hook}{number} {{\n\t\ttype filter hook {hook} device "{link.outer}" '
                f"priority {PRIORITY}; policy accept;\n" + "".join(f"\t\t{rule}\n" for rule in rules) + "\t}\n"
            )
    return text + "}\n"


def nobodys_mac(migration_id: str) -> str:
    """Give the MAC under which the last packets of a workload go out: locally administered, not of a group."""
    return "06:" + hashlib.blake2s(migration_id.encode(), digest_size=5).digest().hex(":")


def _let_through(addresses: Sequence[str], mac: str) -> list[str]:
    """Write what accepts every packet to addresses, and who asks for them; or, with a MAC, what comes from them.

    That leaves under this MAC: the copy may have that of the workload, and where a switch has heard it last, there it
    sends what is for the copy.
    """
    found = [ip_address(each) for each in addresses]
    end, verdict = ("saddr", f"ether saddr set {mac} accept") if mac else ("daddr", "accept")
    rules: list[str] = []
    if four := ", ".join(str(each) for each in found if each.version == 4):
        rules += [f"ip {end} {{ {four} }} {verdict}", f"arp {end} ip {{ {four} }} {verdict}"]
    if six := ", ".join(str(each) for each in found if each.version == 6):
        rules.append(f"ip6 {end} {{ {six} }} {verdict}")
        targets = ", ".join(f"0x{each.packed.hex()}" for each in found if each.version == 6)
        rules += [] if mac else [f"icmpv6 type nd-neighbor-solicit @th,64,128 {{ {targets} }} accept"]
    return rules


def _of_addresses(end: str, addresses: Sequence[str]) -> list[str]:
    """Write what drops every packet to (`daddr`) or from (`saddr`) addresses, and who asks for them or answers.

    Who announces one of them is heard: that is the workload, elsewhere, and what stood beside it here learns of it.
    """
    found = [ip_interface(each).ip for each in addresses]
    rules: list[str] = []
    if four := ", ".join(str(each) for each in found if each.version == 4):
        news = f"arp saddr ip != {{ {four} }} " if end == "daddr" else ""
        rules += [f"ip {end} {{ {four} }} drop", f"{news}arp {end} ip {{ {four} }} drop"]
    if six := ", ".join(str(each) for each in found if each.version == 6):
        # Where the target of a solicitation or an advertisement stands: see `fence.fence_rules`.
        targets = ", ".join(f"0x{each.packed.hex()}" for each in found if each.version == 6)
        message = "nd-neighbor-solicit" if end == "daddr" else "nd-neighbor-advert"
        rules += [f"ip6 {end} {{ {six} }} drop", f"icmpv6 type {message} @th,64,128 {{ {targets} }} drop"]
    return rules


async def engage(migration_id: str, links: Sequence[LinkFacts], leaving: Sequence[str] = ()) -> None:
    """Put it up, at one stroke. Raises `SwitchoverError` with everything as it was."""
    try:
        await run(
            ["nft", "-f", "-"], stdin=fence_rules(migration_id, links, leaving), timeout_seconds=NFT_TIMEOUT_SECONDS
        )
    except CommandError as error:
        raise SwitchoverError(
            f"the fence around {', '.join(link.outer for link in links)} could not be put up: {error.message}",
            hint=f"It needs Linux 5.16 or newer (egress hooks). {NFT_HINT}",
            detail=error.detail,
        ) from error


async def release(migration_id: str) -> None:
    """Lift it; nothing happens where there is none. Raises `NftablesError` with it still standing."""
    close_later(await asyncio.to_thread(remove_tables, [(FAMILY, table_name(migration_id))]))


async def stands(migration_id: str) -> bool:
    """Say whether this migration has one."""
    listing = await run(["nft", "list", "tables", FAMILY], timeout_seconds=NFT_TIMEOUT_SECONDS)
    return migration_id in parse_fences(listing.stdout)
