"""The judges of the lab's tests are strict: each fault that they exist for is found."""

from __future__ import annotations

import pytest

from tests.lab.programs.blocks import BLOCK_BYTES, Blocks, BrokenStreamError
from tests.lab.programs.content import PAGE_BYTES, Content
from tests.lab.witness import Tick, faults, longest_gap, parse_tick

A, B = "10.77.0.11", "10.77.0.12"


def ticks(*seen: tuple[float, str, int]) -> list[Tick]:
    return [Tick(arrived, sender, "i", 0, 7, sequence, 0, 0) for arrived, sender, sequence in seen]


def test_a_line_of_the_recorder() -> None:
    tick = parse_tick("1500000000 10.77.0.11 abc 3 4711 12 5 1")
    assert tick == Tick(1.5, A, "abc", 3, 4711, 12, 5, 1)


def test_a_clean_migration_has_no_faults() -> None:
    seen = ticks((1.0, A, 1), (1.1, A, 2), (1.5, B, 3), (1.6, B, 4))
    assert faults(seen, [A, B]) == []
    assert longest_gap(seen) == pytest.approx(0.4)
    assert longest_gap(seen, since=1.5) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("seen", "path", "word"),
    [
        (ticks((1, A, 1), (2, A, 2), (3, B, 3), (4, A, 3)), [A, B], "twice"),
        (ticks((1, A, 1), (2, B, 2), (3, A, 3), (4, B, 4)), [A, B], "ran on"),
        (ticks((1, A, 1), (2, B, 3)), [A, B], "lost"),
        (ticks((1, A, 2), (2, A, 3)), [A], "lost"),
        (ticks((1, A, 1), (2, A, 3), (3, A, 2)), [A], "out of order"),
        (ticks((1, A, 1), (2, A, 2)), [A, B], "ran on"),
    ],
)
def test_what_must_not_be_seen(seen: list[Tick], path: list[str], word: str) -> None:
    assert any(word in fault for fault in faults(seen, path))


def test_errors_that_a_workload_finds_itself() -> None:
    seen = [Tick(1.0, A, "i", 0, 7, 1, 0, 1)]
    assert "errors itself" in faults(seen, [A])[0]


def test_another_pid_is_seen() -> None:
    seen = [Tick(1.0, A, "i", 0, 7, 1, 0, 0), Tick(2.0, A, "i", 0, 8, 2, 0, 0)]
    assert "PID" in faults(seen, [A])[0]


def sent(count: int) -> bytes:
    sender = Blocks("client", "server")
    return b"".join(sender.next() for _ in range(count))


def test_blocks_arrive_in_any_pieces() -> None:
    reader, data = Blocks("server", "client"), sent(3)
    assert [reader.feed(data[:700]), reader.feed(data[700:701]), reader.feed(data[701:])] == [1, 0, 2]
    assert reader.verified == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:900] + data[901:],  # a byte lost
        lambda data: data[:900] + data[899:],  # a byte doubled
        lambda data: data[:900] + bytes([data[900] ^ 1]) + data[901:],  # a byte changed
        lambda data: data[BLOCK_BYTES:],  # a block lost
        lambda data: data[:BLOCK_BYTES] + data,  # a block doubled
    ],
)
def test_spoiled_bytes_are_found(spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(BrokenStreamError):
        Blocks("server", "client").feed(spoil(sent(4)))


def test_acknowledgements_do_not_go_back() -> None:
    reader, sender = Blocks("server", "client"), Blocks("client", "server")
    sender.verified = 5
    reader.feed(sender.next())
    sender.verified = 4
    with pytest.raises(BrokenStreamError):
        reader.feed(sender.next())


def test_content_knows_each_of_its_pages() -> None:
    content = Content(1)
    content.change(300)
    assert content.wrong_pages() == []
    before = content.checksum()
    page = bytes(content._memory[:PAGE_BYTES])
    content._memory[7 * PAGE_BYTES : 8 * PAGE_BYTES] = page
    assert content.wrong_pages() == [7]
    assert content.checksum() != before
