"""The demonstration's judgement and its Redis client, without a lab."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rich.console import Console

from phaul.cli import demo as screen
from phaul.cli.console import ASCII
from phaul.lab.demo import Check, Leg, Verdict, checks, lost_values
from phaul.lab.programs import redis_client

PID = 10012
FIRST: dict[str, Any] = {
    "server_pid": PID,
    "run_id": "f00",
    "own_port": 40000,
    "connection_id": 5,
    "failures": [],
    "resets": 0,
}
LAST: dict[str, Any] = {**FIRST, "written": 1000, "wrong": 0, "blocks": 64, "lost_numbers": 0, "lost_blocks": 0}
REPORT = {"downtime_us": 50_000, "total_us": 120_000}


def leg(*leftovers: str, source: str = "a", destination: str = "b") -> Leg:
    return Leg(source, destination, 0, 1, REPORT, operations=20, longest_gap_us=60_000, leftovers=leftovers)


def failing(last: dict[str, Any], legs: tuple[Leg, ...] = (leg(),), *, runs: bool = True) -> list[str]:
    return [check.name for check in checks(PID, runs, FIRST, last, legs) if not check.holds]


def test_a_move_without_a_flaw_holds() -> None:
    assert failing(LAST) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"server_pid": PID + 1}, "same process"),
        ({"run_id": "another"}, "same process"),
        ({"own_port": 40001}, "connection survived"),
        ({"connection_id": 6}, "connection survived"),
        ({"resets": 1}, "resets"),
        ({"lost_numbers": 1}, "values lost"),
        ({"lost_blocks": 1}, "values lost"),
        ({"wrong": 1}, "values lost"),
    ],
)
def test_every_flaw_fails_its_own_line(change: dict[str, Any], name: str) -> None:
    assert failing({**LAST, **change}) == [name]


def test_a_process_that_does_not_run_and_traces_fail() -> None:
    assert failing(LAST, runs=False) == ["same process"]
    assert failing(LAST, (leg(), leg("address 10.77.0.100 on b"))) == ["traces left"]


def test_after_a_reset_nothing_counts_as_read_back() -> None:
    # What the client tells once its connection has broken: there is no server to ask any more.
    broken = {"written": 700, "wrong": 0, "resets": 1, "failures": ["ConnectionResetError: gone"], "own_port": 40000}
    assert lost_values(broken) == 700
    assert failing(broken) == ["same process", "connection survived", "resets", "values lost"]


def verdict(*, holds: bool) -> Verdict:
    legs = (leg(), leg(source="b", destination="a"))
    lines = (Check("same process", True, f"PID {PID}"), Check("resets", holds, "0" if holds else "1"))
    return Verdict(legs, lines, before=1500, during=200, after=3000, numbers=2350, blocks=64, lost=0, resets=0)


@pytest.mark.parametrize("holds", [True, False])
def test_the_verdict_fits_80_columns_and_names_what_failed(holds: bool) -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None, highlight=False, markup=False)
    screen._print_verdict(console, verdict(holds=holds), ASCII)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    assert "a -> b" in text
    assert "60 ms" in text
    assert ("+ The verdict holds." in text) is holds
    assert ("x The verdict does not hold: resets." in text) is not holds


def test_the_verdict_for_programs() -> None:
    found = json.loads(json.dumps(screen.verdict_object(verdict(holds=False))))
    assert (found["event"], found["holds"], found["exit_status"]) == ("demo", False, 1)
    assert found["operations"] == {"before": 1500, "during": 200, "after": 3000}
    assert [move["source"] for move in found["moves"]] == ["a", "b"]


class FakeRedis:
    """Keeps values; `forget` makes it lose one, `cut_after` closes the connection after so many commands."""

    def __init__(self, cut_after: int | None = None) -> None:
        self.values: dict[bytes, bytes] = {}
        self.cut_after = cut_after
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self._commands = 0

    def serve(self) -> None:
        connection, _ = self.listening.accept()
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int(stream.readline()[1:])
                    words.append(stream.read(size + 2)[:-2])
                self._commands += 1
                if self.cut_after is not None and self._commands > self.cut_after:
                    return
                connection.sendall(self._answer(words))

    def _answer(self, words: list[bytes]) -> bytes:
        match words:
            case [b"SET", key, value]:
                self.values[key] = value
                return b"+OK\r\n"
            case [b"GET", key] if key in self.values:
                return b"$%d\r\n%s\r\n" % (len(self.values[key]), self.values[key])
            case [b"GET", _]:
                return b"$-1\r\n"
            case [b"INFO", b"server"]:
                text = b"# Server\r\nprocess_id:77\r\nrun_id:f00\r\n"
                return b"$%d\r\n%s\r\n" % (len(text), text)
            case [b"CLIENT", b"ID"]:
                return b":5\r\n"
            case _:
                return b"-ERR unknown command\r\n"


@contextmanager
def serving(server: FakeRedis) -> Iterator[redis_client.Client]:
    thread = threading.Thread(target=server.serve)
    thread.start()
    client = redis_client.Client("127.0.0.1", server.port)
    try:
        yield client
    finally:
        client.redis.close()
        thread.join(10)
        server.listening.close()


def test_the_client_writes_reads_and_verifies() -> None:
    server = FakeRedis()
    with serving(server) as client:
        assert client.obey({"do": "begin"})["failures"] == []
        for _ in range(20):
            client.operate()
        told = client.obey({"do": "verify"})
    assert (told["written"], told["operations"], told["lost_numbers"], told["wrong"]) == (10, 20, 0, 0)
    assert (told["server_pid"], told["run_id"], told["connection_id"]) == (77, "f00", 5)
    assert len(server.values) == 10


def test_the_client_counts_what_was_lost_or_changed() -> None:
    server = FakeRedis()
    with serving(server) as client:
        for _ in range(20):
            client.operate()
        del server.values[b"number:3"]
        server.values[b"number:4"] = b"something else"
        assert client.obey({"do": "verify"})["lost_numbers"] == 2


def test_the_client_tells_a_broken_connection_and_never_connects_again() -> None:
    with serving(FakeRedis(cut_after=9)) as client:
        client.running = True
        for _ in range(20):
            if client.running:
                client.operate()
        told = client.obey({"do": "verify"})
    assert (told["operations"], told["resets"], told["written"]) == (9, 1, 5)
    assert told["failures"]
    assert "lost_numbers" not in told


def test_the_longest_gap_of_a_window_reaches_over_its_edges() -> None:
    with serving(FakeRedis()) as client:
        client.ended_ns = [100, 200, 900, 1000, 5000]
        told = client.obey({"do": "window", "start_ns": 300, "end_ns": 1200})
    # The pause from 200 to 900 began before the window; the one from 1000 to 5000 ends after it.
    assert told == {"before": 2, "within": 2, "after": 1, "longest_gap_ns": 4000}


def test_numbers_and_blocks_are_all_different() -> None:
    assert len({redis_client.number_value(number) for number in range(100)}) == 100
    assert redis_client.block_value(1) == redis_client.block_value(1) != redis_client.block_value(2)
