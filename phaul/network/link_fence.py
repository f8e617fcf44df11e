"""The fence around the links of a workload's own network namespace: every frame is dropped, whatever it carries.

Called by `network.own_links`. It stands in the host's namespace, in the table ``netdev phaul-ID`` where ID is the
migration, so that it outlives the agent and needs nothing of the workload's namespace, which CRIU dumps. Around a veth
pair it closes the outer end; around a macvlan the frames of its MAC on the device that it stands on, around an ipvlan,
which has that device's MAC, those of its addresses. What either and its siblings on the same host say to each other
passes by that device: there CRIU's own lock keeps connections safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_interface

from phaul.errors import SwitchoverError
from phaul.migration.facts import LinkFacts
from phaul.network.closing import close_later
from phaul.network.fence import NFT_HINT, NFT_TIMEOUT_SECONDS, parse_fences, table_name
from phaul.network.nft_batch import remove_tables
from phaul.system.process import CommandError, run

FAMILY = "netdev"
PRIORITY = -500  # before whatever else filters there (Documentation/networking/nf_flowtable: devices have a chain each)


def fence_rules(migration_id: str, links: Sequence[LinkFacts]) -> str:
    """Write the nft transaction that puts it up, in place of one that this migration may have had."""
    name = table_name(migration_id)
    text = f"table {FAMILY} {name}\ndelete table {FAMILY} {name}\ntable {FAMILY} {name} {{\n"
    for number, link in enumerate(links):
        for hook, end in (("ingress", "daddr"), ("egress", "saddr")):
            match link.kind:
                case "veth":
                    rules = ["drop"]
                case "macvlan":
                    rules = [f"ether {end} {link.mac} drop"]
                case _:
                    rules = _of_addresses(end, (*link.addresses, *link.link_local))
            text += (
                f'\tchain {hook}{number} {{\n\t\ttype filter hook {hook} device "{link.outer}" '
                f"priority {PRIORITY}; policy accept;\n" + "".join(f"\t\t{rule}\n" for rule in rules) + "\t}\n"
            )
    return text + "}\n"


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


async def engage(migration_id: str, links: Sequence[LinkFacts]) -> None:
    """Put it up, at one stroke. Raises `SwitchoverError` with everything as it was."""
    try:
        await run(["nft", "-f", "-"], stdin=fence_rules(migration_id, links), timeout_seconds=NFT_TIMEOUT_SECONDS)
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
