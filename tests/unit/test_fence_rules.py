"""The text of a fence, and the netlink batch that lifts it. That the kernel does with them what they say is for
tests/lab/test_network.py."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import DefectError
from phaul.network import fence, nft_batch

IDS = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}", fullmatch=True)
ADDRESSES = st.lists(st.ip_addresses().map(str), min_size=1, max_size=5)

BOTH_FAMILIES = """\
table inet phaul-m1
delete table inet phaul-m1
table arp phaul-m1
delete table arp phaul-m1
table inet phaul-m1 {
	chain prerouting {
		type filter hook prerouting priority -400; policy accept;
		ip daddr { 192.0.2.5, 192.0.2.6 } fib daddr type local meta mark != 0xc114 drop
		ip6 daddr { 2001:db8::5 } fib daddr type local meta mark != 0xc114 drop
	}
	chain input {
		type filter hook input priority -400; policy accept;
		icmpv6 type nd-neighbor-solicit @th,64,128 { 0x20010db8000000000000000000000005 } drop
	}
	chain output {
		type filter hook output priority -400; policy accept;
		ip saddr { 192.0.2.5, 192.0.2.6 } drop
		ip daddr { 192.0.2.5, 192.0.2.6 } fib daddr type local meta mark != 0xc114 drop
		ip6 saddr { 2001:db8::5 } drop
		ip6 daddr { 2001:db8::5 } fib daddr type local meta mark != 0xc114 drop
		icmpv6 type nd-neighbor-advert @th,64,128 { 0x20010db8000000000000000000000005 } drop
	}
}
table arp phaul-m1 {
	chain input {
		type filter hook input priority -400; policy accept;
		arp daddr ip { 192.0.2.5, 192.0.2.6 } drop
	}
	chain output {
		type filter hook output priority -400; policy accept;
		arp saddr ip { 192.0.2.5, 192.0.2.6 } drop
	}
}
"""


def test_rules_of_both_families() -> None:
    assert fence.fence_rules("m1", ["192.0.2.6", "2001:db8::5", "192.0.2.5"]) == BOTH_FAMILIES


def test_without_ipv4_there_is_no_arp_and_without_ipv6_no_icmpv6() -> None:
    assert "table arp phaul-m1 {" not in fence.fence_rules("m1", ["2001:db8::5"])
    assert "icmpv6" not in fence.fence_rules("m1", ["192.0.2.5"])


@given(IDS, ADDRESSES)
def test_every_rule_drops_and_names_every_address_of_its_family(migration_id: str, addresses: list[str]) -> None:
    rules = [line.strip() for line in fence.fence_rules(migration_id, addresses).splitlines() if "drop" in line]
    four = {each for each in addresses if ":" not in each}
    for rule in rules:
        assert rule.endswith(" drop")
        if rule.startswith(("ip ", "arp ")):
            assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", rule)) == four


@given(IDS, ADDRESSES)
def test_putting_up_a_fence_begins_with_taking_down_the_old_one(migration_id: str, addresses: list[str]) -> None:
    assert fence.fence_rules(migration_id, addresses).startswith(fence.removal_rules(migration_id))


@pytest.mark.parametrize("migration_id", ["", "a b", "a;b", "a\nb", "-a", "a{", 'a"', "a" * 65])
def test_an_id_that_could_end_the_name_is_a_defect(migration_id: str) -> None:
    with pytest.raises(DefectError):
        fence.fence_rules(migration_id, ["192.0.2.5"])


def test_an_address_that_is_none_never_gets_into_the_rules() -> None:
    with pytest.raises(ValueError, match="192"):
        fence.fence_rules("m1", ["192.0.2.5 } accept; {"])


@given(st.sets(IDS))
def test_fences_are_found_again_among_other_tables(migration_ids: set[str]) -> None:
    listing = "table ip filter\ntable inet CRIU-1\ntable ip phaul-other\n"
    listing += "".join(f"table {family} phaul-{each}\n" for each in migration_ids for family in fence.FAMILIES)
    assert fence.parse_fences(listing) == tuple(sorted(migration_ids))


def test_removal_batch_byte_by_byte() -> None:
    batch, last = nft_batch.removal_batch([("arp", "t")])
    name = bytes.fromhex("0600 0100 7400 0000")  # length 6, NFTA_TABLE_NAME, "t\0", padded
    assert last == 3
    assert batch == b"".join(
        [
            struct.pack("=IHHII", 20, 0x10, 0x1, 1, 0) + bytes.fromhex("0000 000a"),  # begin, subsystem 10
            struct.pack("=IHHII", 28, 0xA00, 0x401, 2, 0) + bytes.fromhex("0300 0000") + name,  # NEWTABLE, create
            struct.pack("=IHHII", 28, 0xA02, 0x5, 3, 0) + bytes.fromhex("0300 0000") + name,  # DELTABLE, acknowledge
            struct.pack("=IHHII", 20, 0x11, 0x1, 4, 0) + bytes.fromhex("0000 000a"),
        ]
    )


@given(st.lists(st.tuples(st.sampled_from(sorted(nft_batch.FAMILIES)), IDS), max_size=4))
def test_messages_of_a_batch_follow_each_other_without_a_gap(tables: list[tuple[str, str]]) -> None:
    batch, last = nft_batch.removal_batch(tables)
    sequences: list[int] = []
    while batch:
        length, _, _, sequence, _ = struct.unpack_from("=IHHII", batch)
        assert length % 4 == 0
        sequences.append(sequence)
        batch = batch[length:]
    assert sequences == list(range(1, last + 2))


def test_answers() -> None:
    def answer(sequence: int, code: int) -> bytes:
        return struct.pack("=IHHIIi", 36, 2, 0, sequence, 0, code) + bytes(16)

    assert nft_batch.read_answers(answer(3, 0) + answer(5, 0)) == {3, 5}
    with pytest.raises(PermissionError):
        nft_batch.read_answers(answer(3, 0) + answer(5, -1))
