"""What somebody else has on the destination, and what its kernel and processors do not allow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from phaul.migration import check_report
from phaul.migration.facts import (
    ConnectionFacts,
    DestinationFacts,
    FileFacts,
    FileUse,
    HostFacts,
    Occupancy,
    Problem,
    Severity,
    TaskFacts,
    WorkloadFacts,
)
from phaul.migration.file_rules import file_problems
from phaul.migration.host_rules import capacity_problems, host_problems
from phaul.migration.taken_rules import id_problems, occupied_problems, wanted_ids
from phaul.units import GIB, MIB

HOST = HostFacts(
    host_name="beta",
    phaul_version="1",
    kernel_release="6.12.1",
    architecture="x86_64",
    criu_version="4.2",
    memory_available_bytes=GIB,
    devices=("lo", "eth0"),
    cpu_features=("avx", "sse2"),
    capabilities=0xFF,
    max_mappings=65530,
    max_open_files=1 << 20,
    max_pid=32768,
)
TASK = TaskFacts(4711, 1, "redis", (4711, 4712), 0, 1)
WORKLOAD = WorkloadFacts(4711, (TASK,), MIB, (), ())


def listener(address: str, port: int = 6379, protocol: str = "tcp") -> ConnectionFacts:
    state = "listen" if protocol == "tcp" else "close"
    other = "::" if ":" in address else "0.0.0.0"
    return ConnectionFacts(protocol, state, address, port, other, 0)


def taken(workload: WorkloadFacts, occupied: Occupancy) -> list[str]:
    return [each.code for each in occupied_problems(workload, DestinationFacts(HOST, occupied=occupied))]


@pytest.mark.parametrize(
    ("mine", "theirs", "conflict"),
    [
        ([listener("0.0.0.0")], [listener("0.0.0.0")], True),
        ([listener("0.0.0.0")], [listener("10.0.0.2")], True),
        ([listener("10.0.0.50")], [listener("0.0.0.0")], True),
        ([listener("10.0.0.50")], [listener("10.0.0.2")], False),
        ([listener("0.0.0.0")], [listener("0.0.0.0", 6380)], False),
        ([listener("0.0.0.0")], [listener("0.0.0.0", protocol="udp")], False),
        ([listener("0.0.0.0", protocol="udp")], [listener("0.0.0.0", protocol="udp")], True),
        ([listener("::")], [listener("0.0.0.0")], True),
        ([listener("::"), listener("10.0.0.50")], [listener("10.0.0.2")], False),  # it serves IPv6 alone
        ([listener("0.0.0.0")], [listener("::")], True),
        ([listener("fd00::5")], [listener("0.0.0.0")], False),
        ([ConnectionFacts("tcp", "established", "10.0.0.50", 6379, "10.0.0.9", 4)], [listener("0.0.0.0")], False),
        ([ConnectionFacts("udp", "established", "10.0.0.50", 53, "10.0.0.9", 4)], [listener("0.0.0.0", 53)], False),
    ],
)
def test_ports(mine: list[ConnectionFacts], theirs: list[ConnectionFacts], conflict: bool) -> None:
    found = taken(replace(WORKLOAD, connections=tuple(mine)), Occupancy(sockets=tuple(theirs)))
    assert found == (["port_taken"] if conflict else [])
    elsewhere = replace(WORKLOAD, connections=tuple(mine), has_own_network=True)
    assert taken(elsewhere, Occupancy(sockets=tuple(theirs))) == []


def test_names_terminals_and_devices() -> None:
    busy = Occupancy(unix_names=("@a", "/run/a"), terminals=(0, 3))
    assert taken(replace(WORKLOAD, unix_names=("@b", "/run/b"), terminals=(1,)), busy) == []
    assert taken(replace(WORKLOAD, unix_names=("@a",)), busy) == ["unix_name_taken"]
    assert taken(replace(WORKLOAD, unix_names=("/run/a",)), busy) == ["unix_name_taken"]
    assert taken(replace(WORKLOAD, terminals=(3,)), busy) == ["terminal_taken"]
    assert taken(replace(WORKLOAD, bound_devices=("eth0",)), busy) == []
    assert taken(replace(WORKLOAD, bound_devices=("eth9",)), busy) == ["socket_device_missing"]


def test_numbers_of_those_that_are_gone_must_be_free_too() -> None:
    workload = replace(WORKLOAD, helper_ids=(4000,))
    assert wanted_ids(workload) == (4711, 4712, 4000)
    (problem,) = id_problems(workload, DestinationFacts(HOST, taken_ids=(4000, 9)))
    assert problem.code == "ids_taken" and "4000 (a session, group or process that has ended)" in problem.message
    assert not list(id_problems(workload, DestinationFacts(HOST, taken_ids=(9,))))


@pytest.mark.parametrize(
    ("workload", "host", "codes"),
    [
        ({}, {}, []),
        ({"most_mappings": 65530 - 64}, {}, []),
        ({"most_mappings": 65530 - 63}, {}, ["mapping_limit"]),
        ({"most_open_files": 1 << 20}, {}, []),
        ({"most_open_files": (1 << 20) + 1}, {}, ["open_files_limit"]),
        ({}, {"max_pid": 4712}, ["pid_limit"]),
        ({}, {"max_pid": 4713}, []),
        ({"helper_ids": (32768,)}, {}, ["pid_limit"]),
        ({"capabilities": 0xFF}, {}, []),
        ({"capabilities": 0x1FF}, {}, ["capabilities"]),
        ({"capabilities": 0x1FF}, {"capabilities": 0}, []),  # an agent that does not say
        ({"huge_page_bytes": 2 * MIB}, {}, ["huge_pages"]),
        ({"huge_page_bytes": 2 * MIB}, {"free_huge_page_bytes": 2 * MIB}, []),
        ({"security_label": "redis (enforce)"}, {}, ["security_profile"]),
        ({"security_label": "redis (enforce)"}, {"security_modules": ("selinux",)}, ["security_label"]),
        ({"most_mappings": 10**9}, {"max_mappings": 0}, []),
    ],
)
def test_what_the_destination_allows(workload: dict[str, object], host: dict[str, object], codes: list[str]) -> None:
    wanted = replace(WORKLOAD, **workload)  # type: ignore[arg-type]
    found = list(capacity_problems(wanted, HOST, replace(HOST, **host)))  # type: ignore[arg-type]
    assert [each.code for each in found] == codes
    assert all("beta" in each.message + each.hint for each in found)


def test_processors_must_have_what_programs_have_found() -> None:
    newer = replace(HOST, cpu_features=("avx", "avx512f", "sse2"))
    assert list(host_problems(HOST, newer)) == []
    (problem,) = host_problems(newer, HOST)
    assert problem.code == "cpu_features" and "avx512f" in problem.message and problem.severity is Severity.REFUSES
    assert list(host_problems(newer, replace(HOST, cpu_features=()))) == []
    (older,) = host_problems(replace(HOST, kernel_release="6.18.2"), HOST)
    assert older.code == "kernel_older" and older.severity is Severity.WARNS


def test_locks_contents_and_watches() -> None:
    held = FileFacts("/srv/a", FileUse.OPEN, size_bytes=3, mode=0o100644, locked=True)
    assert [each.code for each in file_problems([held], [held], "beta")] == ["file_locked"]
    assert file_problems([held], [replace(held, locked=False)], "beta") == ()
    mapped = FileFacts("/srv/b", FileUse.MAPPED, size_bytes=3, mode=0o100644, build_id="content 1")
    assert [each.code for each in file_problems([mapped], [replace(mapped, build_id="content 2")], "b")] == [
        "file_differs"
    ]
    watched = FileFacts("/etc", FileUse.WATCHED, mode=0o040755)
    assert file_problems([watched], [replace(watched, mode=0o040700)], "beta") == ()
    assert [each.code for each in file_problems([watched], [], "beta")] == ["file_missing"]


def test_what_is_fine_is_said_only_where_nothing_refuses() -> None:
    destination = DestinationFacts(HOST)
    everything = check_report.fine(WORKLOAD, HOST, destination, ())
    assert any("numbers" in each for each in everything)
    refused = check_report.fine(WORKLOAD, HOST, destination, (Problem("ids_taken", "m", "h"),))
    assert not any("numbers" in each for each in refused) and len(refused) == len(everything) - 1
    warned = check_report.fine(WORKLOAD, HOST, destination, (Problem("ids_taken", "m", "h", Severity.WARNS),))
    assert warned == everything


def test_each_code_has_one_heading_and_downtime_grows() -> None:
    codes = [code for group in check_report.GROUPS.values() for code in group]
    assert len(codes) == len(set(codes))
    assert check_report.group_of("ids_taken") == "The process" and check_report.group_of("x") == "Other"
    small, big = replace(WORKLOAD, memory_bytes=MIB), replace(WORKLOAD, memory_bytes=GIB)
    assert 40_000 < check_report.expected_downtime_us(small) < 60_000
    assert 600_000 < check_report.expected_downtime_us(big) < 900_000
    crowd = replace(small, tasks=(TASK,) * 100)
    assert check_report.expected_downtime_us(crowd) > 600_000
