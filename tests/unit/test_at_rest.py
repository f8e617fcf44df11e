"""What a dump changes in what is judged: connections, and who has an identity that a copy would have too."""

from __future__ import annotations

from dataclasses import replace

from phaul.migration import at_rest
from phaul.migration.facts import (
    ClaimFacts,
    ConnectionFacts,
    LinkFacts,
    MigrationRequest,
    NetworkFacts,
    Problem,
    Severity,
    TaskFacts,
    WorkloadFacts,
)

TALKS = ConnectionFacts("tcp", "established", "10.0.0.5", 80, "10.0.0.9", 40000)
LISTENS = ConnectionFacts("tcp", "listen", "10.0.0.5", 80, "0.0.0.0", 0, unaccepted=2)
TELLS = ConnectionFacts("udp", "established", "10.0.0.5", 53, "10.0.0.9", 40000)
LINK = LinkFacts("eth0", "veth", "02:00:00:00:00:05", "v1", addresses=("10.0.0.5/24", "fd00::5/64"))
WORKLOAD = WorkloadFacts(
    7, (TaskFacts(7, 1, "web", (7,), 0, 1),), 0, (), (TALKS, LISTENS, TELLS), network=NetworkFacts((LINK,))
)
DUMP = MigrationRequest(7, at_rest.destination_of("/srv/dump"))


def codes(problems: object) -> list[str]:
    return [each.code for each in problems]  # type: ignore[attr-defined]


def test_connections_are_no_reason_to_refuse_a_dump() -> None:
    found = [Problem("unaccepted_connections", "a", "b"), Problem("traced", "a", "b")]
    assert at_rest.judged(replace(DUMP, destination="b:7428"), WORKLOAD, found) == found
    judged = at_rest.judged(DUMP, WORKLOAD, found)
    assert codes(judged) == ["traced", "connections_closed"]
    assert judged[1].severity is Severity.WARNS
    assert "1 TCP connection will end with the workload" in judged[1].message
    left = at_rest.judged(replace(DUMP, leave_running=True), WORKLOAD, ())
    assert "go on here" in left[0].message
    assert at_rest.judged(DUMP, replace(WORKLOAD, connections=(LISTENS, TELLS)), ()) == []


def test_a_manifest_names_the_sockets_that_a_copy_has() -> None:
    assert at_rest.as_kept(WORKLOAD).connections == (replace(LISTENS, unaccepted=0), TELLS)


def test_a_destination_is_a_directory_or_a_host() -> None:
    assert at_rest.directory_of(DUMP.destination) == "/srv/dump"
    assert at_rest.directory_of("b:7428") is None
    assert not MigrationRequest(7, "directory:7428").at_rest  # a host may be called so
    assert DUMP.at_rest
    assert DUMP.closes_connections
    assert not MigrationRequest(7, "b:7428").closes_connections


def test_nobody_may_have_what_a_copy_would_have() -> None:
    mine, others = ClaimFacts("10.0.0.5", LINK.mac), ClaimFacts("fd00::5", "02:00:00:00:00:66")
    assert codes(at_rest.claim_problems((mine, others), WORKLOAD, "/d")) == ["address_claimed", "address_claimed"]
    moved = replace(WORKLOAD, network=NetworkFacts((replace(LINK, addresses=("10.0.0.6/24",)),)))
    assert codes(at_rest.claim_problems((mine, others), moved, "/d")) == ["mac_taken"]
    other_mac = replace(WORKLOAD, network=NetworkFacts((replace(LINK, mac="02:00:00:00:00:77", addresses=()),)))
    assert at_rest.claim_problems((mine, others), other_mac, "/d") == ()


def test_advice_is_for_who_restores() -> None:
    found = [Problem("ids_taken", "a", "restart it"), Problem("file_missing", "b", "copy it")]
    ids, file = at_rest.advised(found, "b")
    assert "another host" in ids.hint
    assert file == found[1]
