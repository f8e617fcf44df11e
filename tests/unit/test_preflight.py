"""What preflight refuses, what it lets go, and whether a tired person could act on what it says."""

from __future__ import annotations

import ipaddress
import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import UsageError
from phaul.migration import file_rules, preflight
from phaul.migration.facts import (
    AddressFacts,
    AddressRequest,
    ConnectionFacts,
    DestinationFacts,
    FileFacts,
    FileUse,
    HostFacts,
    MigrationRequest,
    Problem,
    Severity,
    TaskFacts,
    WorkloadFacts,
)
from phaul.units import GIB, MIB

SERVICE = AddressFacts("192.0.2.50", 24, "eth0")
SOURCE = HostFacts(
    host_name="alpha",
    phaul_version="0.1.3",
    kernel_release="6.12.1",
    architecture="x86_64",
    page_size_bytes=4096,
    criu_version="4.2.1",
    memory_available_bytes=4 * GIB,
    addresses=(AddressFacts("192.0.2.1", 24, "eth0"), SERVICE),
    devices=("eth0", "lo"),
)
HOST = replace(SOURCE, host_name="beta", addresses=(AddressFacts("192.0.2.2", 24, "eth0"),))
PROGRAM = FileFacts("/usr/bin/redis", FileUse.EXECUTABLE, True, 1000, stat.S_IFREG | 0o755, "aabb")
LOG = FileFacts("/var/log/redis.log", FileUse.OPEN, True, 500, stat.S_IFREG | 0o640, writable=True, append_only=True)
DATA = FileFacts("/srv/data.db", FileUse.OPEN, True, 500, stat.S_IFREG | 0o640)
NULL = FileFacts("/dev/null", FileUse.OPEN, True, 0, stat.S_IFCHR | 0o666)
CWD = FileFacts("/srv", FileUse.WORKING_DIRECTORY, True, 0, stat.S_IFDIR | 0o755)
RUN = FileFacts("/run/redis", FileUse.SOCKET_DIRECTORY, True, 0, stat.S_IFDIR | 0o755)
FILES = (PROGRAM, LOG, DATA, NULL, CWD, RUN)
CLIENT = ConnectionFacts("tcp", "established", "192.0.2.50", 6379, "192.0.2.99", 40000)
LISTENER = ConnectionFacts("tcp", "listen", "0.0.0.0", 6379, "0.0.0.0", 0)
TASK = TaskFacts(4711, 1, "redis", (4711, 4712), 100, 12345)
WORKLOAD = WorkloadFacts(4711, (TASK,), 256 * MIB, FILES, (LISTENER, CLIENT))
DESTINATION = DestinationFacts(HOST, FILES, (), ("127.0.0.1", "::1", "192.0.2.2"))
REQUEST = MigrationRequest(4711, "beta", (AddressRequest("192.0.2.50", 24),))


def judge(
    *,
    request: MigrationRequest = REQUEST,
    workload: WorkloadFacts = WORKLOAD,
    source: HostFacts = SOURCE,
    destination: DestinationFacts = DESTINATION,
) -> dict[str, Problem]:
    """Compare, and check what holds for every answer: readable, and refusals first."""
    problems = preflight.compare(request, workload, source, destination)
    severities = [problem.severity for problem in problems]
    assert severities == sorted(severities)  # "refuses" before "warns"
    for problem in problems:
        assert problem.code == problem.code.lower() and problem.code.isidentifier()
        assert problem.message.endswith(".") and "  " not in problem.message
        assert len(problem.message) < 700 and problem.hint.endswith((".", "journal)."))
    return {problem.code: problem for problem in problems}


def there(changed: FileFacts) -> DestinationFacts:
    """Give a destination where one file differs."""
    return replace(DESTINATION, files=tuple(changed if each.path == changed.path else each for each in FILES))


def with_connections(*connections: ConnectionFacts) -> WorkloadFacts:
    return replace(WORKLOAD, connections=connections)


def test_a_workload_that_fits_may_go() -> None:
    assert judge() == {}


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ({"phaul_version": "0.2.0"}, "phaul_version"),
        ({"criu_version": "4.1.1"}, "criu_older"),
        ({"criu_version": ""}, "criu_missing"),
        ({"architecture": "aarch64"}, "architecture"),
        ({"page_size_bytes": 65536}, "page_size"),
        ({"memory_available_bytes": 2 * 256 * MIB + 64 * MIB - 1}, "memory"),
        ({"devices": ("lo", "ens3")}, "device_missing"),
    ],
)
def test_a_destination_of_another_kind_is_refused(host: dict[str, object], code: str) -> None:
    found = judge(destination=replace(DESTINATION, host=replace(HOST, **host)))  # type: ignore[arg-type]
    assert list(found) == [code]
    assert "beta" in found[code].message and found[code].severity is Severity.REFUSES


def test_just_enough_memory_and_newer_patch_versions_are_fine() -> None:
    host = replace(HOST, memory_available_bytes=576 * MIB, criu_version="4.10", phaul_version="0.1.99")
    assert judge(destination=replace(DESTINATION, host=host)) == {}


def test_problems_of_hosts_are_told_apart() -> None:
    sick = Problem("criu_too_old", "CRIU 3.17 cannot dump on this kernel.", "Install CRIU 4.2.")
    found = preflight.compare(
        REQUEST,
        WORKLOAD,
        replace(SOURCE, problems=(sick,)),
        replace(DESTINATION, host=replace(HOST, criu_version="", problems=(sick,))),
    )
    assert [problem.code for problem in found] == ["criu_too_old", "criu_too_old"]
    assert "source alpha" in found[0].message and "destination beta" in found[1].message


def test_taken_ids_are_named_with_what_had_them() -> None:
    found = judge(destination=replace(DESTINATION, taken_ids=(4712, 4711, 9)))
    assert "4711 (redis), 4712 (redis, a thread)" in found["ids_taken"].message
    assert "9 " not in found["ids_taken"].message


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (replace(PROGRAM, exists=False), "file_missing"),
        (replace(PROGRAM, size_bytes=1001), "file_size"),
        (replace(PROGRAM, build_id="ccdd"), "file_build_id"),
        (replace(PROGRAM, build_id=""), "file_build_id"),
        (replace(PROGRAM, mode=stat.S_IFREG | 0o750), "file_mode"),
        (replace(PROGRAM, mode=stat.S_IFDIR | 0o755, size_bytes=0), "file_type"),
        (replace(DATA, size_bytes=0), "file_size"),
        (replace(LOG, exists=False), "file_missing"),
        (replace(NULL, mode=stat.S_IFCHR | 0o600), "file_mode"),
        (replace(NULL, mode=stat.S_IFREG | 0o666), "file_type"),
        (replace(CWD, exists=False), "file_missing"),
        (replace(CWD, mode=stat.S_IFDIR | 0o700), "file_mode"),
        (replace(RUN, exists=False), "file_missing"),
    ],
)
def test_a_file_that_criu_would_stumble_over_is_refused(changed: FileFacts, code: str) -> None:
    found = judge(destination=there(changed))
    assert list(found) == [code] and changed.path in found[code].message
    assert found[code].severity is Severity.REFUSES


@pytest.mark.parametrize(
    "changed",
    [replace(NULL, size_bytes=7), replace(CWD, size_bytes=4096), replace(RUN, mode=stat.S_IFDIR | 0o700)],
)
def test_differences_that_criu_does_not_look_at_are_fine(changed: FileFacts) -> None:
    assert judge(destination=there(changed)) == {}


def test_a_log_that_is_only_appended_to_may_have_any_size() -> None:
    found = judge(destination=there(replace(LOG, size_bytes=0)))
    assert found["log_size"].severity is Severity.WARNS and len(found) == 1


def test_a_file_that_is_written_to_is_a_warning_that_its_content_stays() -> None:
    written = replace(DATA, writable=True)
    found = judge(workload=replace(WORKLOAD, files=(written,)))
    assert {code: problem.severity for code, problem in found.items()} == {"file_content": Severity.WARNS}
    counter = replace(written, path="/proc/sys/vm/drop_caches", size_bytes=0)
    alone = replace(DESTINATION, files=(counter,))
    assert judge(workload=replace(WORKLOAD, files=(counter,)), destination=alone) == {}
    shorter = replace(DESTINATION, files=(replace(DATA, size_bytes=1),))
    hint = judge(workload=replace(WORKLOAD, files=(written,)), destination=shorter)["file_size"].hint
    assert "stop the writing" in hint


@pytest.mark.parametrize(
    ("seen_there", "later_here", "expected"),
    [
        (DATA.size_bytes, DATA.size_bytes, {"file_content"}),
        (600, 700, {"file_content"}),  # it grows, and both see the same one
        (600, 600, {"file_content"}),
        (400, 300, {"file_content"}),
        (600, 500, {"file_size"}),  # it stands still
        (900, 700, {"file_size"}),
        (400, 700, {"file_size"}),
        (None, None, set()),  # renamed or removed meanwhile
        (None, 700, {"file_missing"}),
        (700, None, {"file_size"}),
    ],
)
def test_a_file_that_changes_while_it_is_looked_at_is_no_other_file(
    seen_there: int | None, later_here: int | None, expected: set[str]
) -> None:
    def looking(size_bytes: int | None) -> FileFacts:
        return replace(DATA, writable=True, exists=size_bytes is not None, size_bytes=size_bytes or 0)

    held, other = (looking(DATA.size_bytes), PROGRAM), (looking(seen_there), PROGRAM)
    asked = file_rules.perhaps_changed(held, other)
    assert [each.path for each in asked] == ([] if seen_there == DATA.size_bytes else [DATA.path])
    judged = file_rules.as_changed(held, other, [looking(later_here)] if asked else [])
    assert {each.code for each in file_rules.file_problems(judged, other, "beta")} == expected


def test_only_open_files_that_may_have_been_written_to_are_looked_at_again() -> None:
    assert file_rules.perhaps_changed(FILES, FILES) == ()
    shorter = [replace(each, size_bytes=1) for each in FILES]
    assert file_rules.perhaps_changed(FILES, shorter) == (LOG,)
    missing = [replace(each, exists=False) for each in FILES]
    assert file_rules.perhaps_changed(FILES, missing) == (LOG, DATA)


def test_addresses_of_another_network_namespace_are_not_compared() -> None:
    assert judge(request=replace(REQUEST, addresses=()), workload=replace(WORKLOAD, has_own_network=True)) == {}


def test_many_files_of_a_kind_are_folded_into_one_problem() -> None:
    many = tuple(replace(PROGRAM, path=f"/usr/lib/lib{n}.so", use=FileUse.MAPPED) for n in range(20))
    found = judge(workload=replace(WORKLOAD, files=many), destination=replace(DESTINATION, files=()))
    message = found["file_missing"].message
    assert "/usr/lib/lib0.so" in message and "/usr/lib/lib2.so" in message and "and 17 more" in message
    assert "lib3.so" not in message


def test_the_hint_is_a_command_that_can_be_pasted() -> None:
    odd = replace(DATA, path="/srv/my data.csv", writable=False)
    found = judge(workload=replace(WORKLOAD, files=(odd,)), destination=replace(DESTINATION, files=()))
    assert "rsync -aR '/srv/my data.csv' beta:/" in found["file_missing"].hint
    assert "chmod 0640 /srv/data.db" in judge(destination=there(replace(DATA, mode=stat.S_IFREG)))["file_mode"].hint
    named = replace(DATA, path="/dev/shm/PostgreSQL.42", use=FileUse.MAPPED)
    found = judge(workload=replace(WORKLOAD, files=(named,)), destination=replace(DESTINATION, files=()))
    assert "unshare --ipc" in found["file_missing"].hint
    driver = replace(NULL, path="/sys/class/x/y")
    found = judge(workload=replace(WORKLOAD, files=(driver,)))
    assert "rsync" not in found["file_missing"].hint and "driver" in found["file_missing"].hint


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2), st.sampled_from(["", "aa", "bb"])), max_size=30
    )
)
def test_files_are_refused_exactly_when_one_differs(shapes: list[tuple[int, bool, int, str]]) -> None:
    held = [
        FileFacts(f"/f{n}", FileUse.OPEN, True, 1, stat.S_IFREG | 0o600, "aa", writable=n % 2 == 0)
        for n in range(len(shapes))
    ]
    seen = [
        replace(file, exists=exists, size_bytes=size, mode=stat.S_IFREG | (0o600 if mode else 0o644), build_id=build)
        for file, (mode, exists, size, build) in zip(held, shapes, strict=True)
    ]
    found = preflight.compare(
        REQUEST, replace(WORKLOAD, files=tuple(held)), SOURCE, replace(DESTINATION, files=tuple(reversed(seen)))
    )
    assert any(problem.severity is Severity.REFUSES for problem in found) == any(
        not e or not m or s != 1 or b != "aa" for m, e, s, b in shapes
    )


def test_an_address_must_be_on_the_source_and_only_there() -> None:
    elsewhere = replace(REQUEST, addresses=(AddressRequest("192.0.2.77", 24),))
    assert "192.0.2.50/24@eth0" in judge(request=elsewhere)["address_not_on_source"].hint
    both = replace(DESTINATION, local_addresses=(*DESTINATION.local_addresses, "192.0.2.50"))
    assert "address_on_destination" in judge(destination=both)
    wrong = replace(REQUEST, addresses=(AddressRequest("192.0.2.50", 16),))
    assert "--address 192.0.2.50/24" in judge(request=wrong)["address_prefix"].hint


def test_an_address_without_a_prefix_takes_that_of_the_source() -> None:
    request = replace(REQUEST, addresses=(preflight.parse_address("192.0.2.50@ens3"),))
    host = replace(HOST, devices=("ens3", "lo"))
    assert judge(request=request, destination=replace(DESTINATION, host=host)) == {}
    moving = preflight.resolve_addresses(request, SOURCE)
    assert moving == (SERVICE,)
    assert preflight.destination_addresses(request, moving) == (AddressFacts("192.0.2.50", 24, "ens3"),)
    assert preflight.destination_addresses(REQUEST, moving) == (SERVICE,)


def test_a_connection_needs_its_address() -> None:
    found = judge(request=replace(REQUEST, addresses=()))
    assert list(found) == ["connection_address_missing"]
    assert found["connection_address_missing"].hint.endswith("--address 192.0.2.50/24.")
    assert "192.0.2.50:6379 to 192.0.2.99:40000" in found["connection_address_missing"].message


@pytest.mark.parametrize(
    "connection",
    [
        LISTENER,
        replace(LISTENER, local_address="::", remote_address="::"),
        replace(LISTENER, local_address="127.0.0.1"),
        replace(LISTENER, local_address="127.0.0.53"),
        replace(LISTENER, local_address="::1"),
        replace(LISTENER, local_address="192.0.2.50"),
        replace(LISTENER, protocol="udp", state="close"),
        replace(LISTENER, protocol="udp", state="close", local_address="224.0.0.251"),
        replace(CLIENT, local_address="::ffff:192.0.2.50", remote_address="::ffff:192.0.2.99"),
    ],
)
def test_addresses_that_the_destination_will_have_are_fine(connection: ConnectionFacts) -> None:
    assert judge(workload=with_connections(connection)) == {}


def test_a_mapped_ipv6_address_is_looked_for_as_ipv4() -> None:
    mapped = replace(LISTENER, local_address="::ffff:192.0.2.1")
    assert "--address 192.0.2.1/24" in judge(workload=with_connections(mapped))["connection_address_missing"].hint


def test_a_loopback_connection_may_go_only_with_both_ends() -> None:
    here = ConnectionFacts("tcp", "established", "127.0.0.1", 5000, "127.0.0.1", 6000)
    back = ConnectionFacts("tcp", "established", "127.0.0.1", 6000, "127.0.0.1", 5000)
    assert judge(workload=with_connections(here, back)) == {}
    assert list(judge(workload=with_connections(here))) == ["peer_stays_behind"]
    own = replace(here, local_address="192.0.2.50", remote_address="192.0.2.50")
    assert list(judge(workload=with_connections(own))) == ["peer_stays_behind"]
    assert judge(workload=with_connections(replace(here, state="close_wait"))) == {}
    assert judge(workload=with_connections(replace(here, protocol="udp"))) == {}


def test_an_address_that_both_hosts_have_is_only_a_warning() -> None:
    both = replace(DESTINATION, local_addresses=(*DESTINATION.local_addresses, "10.0.0.1"))
    found = judge(workload=with_connections(replace(CLIENT, local_address="10.0.0.1")), destination=both)
    assert {code: problem.severity for code, problem in found.items()} == {"address_on_both_hosts": Severity.WARNS}


def test_a_peer_on_the_destination_is_only_a_warning() -> None:
    peer = ConnectionFacts("tcp", "established", "192.0.2.50", 5000, "10.0.0.2", 6000)
    there = replace(DESTINATION, local_addresses=(*DESTINATION.local_addresses, "10.0.0.2"))
    found = judge(workload=with_connections(peer), destination=there)
    assert {code: problem.severity for code, problem in found.items()} == {"peer_on_destination": Severity.WARNS}
    assert judge(workload=with_connections(peer)) == {}
    assert judge(workload=with_connections(replace(peer, state="listen")), destination=there) == {}


def test_waiting_connections_refuse_unless_they_may_be_dropped() -> None:
    workload = with_connections(replace(LISTENER, unaccepted=2))
    assert judge(workload=workload)["unaccepted_connections"].severity is Severity.REFUSES
    dropping = replace(REQUEST, drop_unaccepted=True)
    assert judge(workload=workload, request=dropping)["unaccepted_connections"].severity is Severity.WARNS


def test_the_refusal_carries_every_reason() -> None:
    problems = [
        Problem("quiet", "A warning.", "Nothing.", Severity.WARNS),
        Problem("one", "The first.", "Do this."),
        Problem("two", "The second.", "Do that."),
    ]
    error = preflight.refusal(problems)
    assert (error.exit_status, error.message, error.hint) == (10, "The first. (1 more reason)", "Do this.")
    assert error.detail == "one: The first. Do this.\ntwo: The second. Do that."


@given(
    address=st.ip_addresses(network="198.18.0.0/15") | st.ip_addresses(network="2001:db8::/32"),
    device=st.none() | st.from_regex(r"[a-z][a-z0-9.:_-]{0,14}", fullmatch=True),
    data=st.data(),
)
def test_any_address_is_read_back_as_typed(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, device: str | None, data: st.DataObject
) -> None:
    prefix = data.draw(st.none() | st.integers(1, address.max_prefixlen))
    text = f"{address}" + (f"/{prefix}" if prefix else "") + (f"@{device}" if device else "")
    wanted = AddressRequest(str(address), prefix or address.max_prefixlen, device or "")
    assert preflight.parse_address(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "eth0",
        "192.0.2.1/33",
        "192.0.2.1@",
        "192.0.2.1/24@a/b",
        "192.0.2.1@sixteen-letters0",
        "fe80::1%eth0/64",
        "127.0.0.1",
        "::",
        "224.0.0.1",
        "fe80::1/64",
        "192.0.2.1/24@a b",
        "192.0.2.300",
        "192.0.2.1/24@eth0@eth1/",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        preflight.parse_address(text)
    assert "192.0.2.10/24" in caught.value.hint


@pytest.mark.parametrize(("text", "version"), [("4.2.1-1+b1", (4, 2, 1)), ("v", ()), ("", ()), ("4.10", (4, 10))])
def test_versions_are_read_as_numbers(text: str, version: tuple[int, ...]) -> None:
    assert preflight.version_of(text) == version
