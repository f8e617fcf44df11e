"""Clients of the workloads, as processes on the lab's client: each judges by what it sees on its connections.

`Numbering` exchanges numbered blocks, `Knocking` connects again and again, `RedisLoad` sets and reads values. The
programs stand in programs/. `Typing` is for programs that nobody here wrote: it types to them as a person would.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from phaul.lab.host import Host

from .witness import POLL_SECONDS, PYTHON

LINE_SECONDS = 60.0


class Lines:
    """What a child prints, line by line, with a deadline. Owns the child: `close` ends it and gives its pipes back."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.wait(10)
        self._reader.join(10)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def next(self, timeout_seconds: float = LINE_SECONDS) -> str | None:
        """Give the next line; None after the last one. Raises `queue.Empty` when none comes in time."""
        return self._lines.get(timeout=timeout_seconds)

    def empty(self) -> bool:
        """Whether nothing has been printed since."""
        return self._lines.empty()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


class Client:
    """A program on the client that takes commands and answers with a line. Killed at the end of the `with`."""

    def __init__(self, client: Host, argv: Sequence[str], ready: str) -> None:
        self.process = client.popen(
            ["python3", "-m", f"witness.{argv[0]}", *argv[1:]],
            env=PYTHON,
            stdin=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._lines = Lines(self.process)
        line = self._lines.next()
        if line != f"{ready}\n":
            rest = iter(self._lines.next, None)
            said = (line or "") + "".join(str(each) for each in rest)
            self._lines.close()
            raise AssertionError(f"{argv[0]} could not start: {said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def ask(self, command: str) -> Any:
        """Give a command, or the end of input for "", and read the answer."""
        assert self.process.stdin is not None
        if command:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        else:
            self.process.stdin.close()
        line = self._lines.next()
        assert line is not None, f"the client ended before it answered {command!r}"
        try:
            return json.loads(line)
        except ValueError:
            raise AssertionError(f"the client failed: {line}") from None


@dataclass(frozen=True, slots=True)
class Account:
    """What a client saw on one connection. Times are on the monotonic clock."""

    error: str
    sent: int
    acknowledged: int
    arrivals: list[float]
    lost: int = 0

    def check(self, freeze: float, resume: float, *, finished: bool = False) -> None:
        """The connection lives, nothing is missing, and it was at work before the freeze and after the resume.

        Once the client has `finished`, everything that it ever sent must have been answered, too.
        """
        assert self.error == "", f"the connection broke: {self.error}"
        assert self.lost == 0, f"{self.lost} values are lost"
        unanswered = self.sent - self.acknowledged
        assert not finished or unanswered == 0, f"{unanswered} operations were never answered"
        assert any(moment < freeze for moment in self.arrivals), "no operation before the freeze"
        assert any(moment > resume for moment in self.arrivals), "no operation after the resume"

    def longest_gap(self, since: float = 0.0) -> float:
        """Give the longest time without an answer, in seconds."""
        return max((after - before for before, after in pairwise(self.arrivals) if after > since), default=0.0)


class Numbering(Client):
    """Numbered blocks over one connection to each (address, port)."""

    def __init__(self, client: Host, *places: tuple[str, int], options: Sequence[str] = ()) -> None:
        where = [word for address, port in places for word in (address, str(port))]
        super().__init__(client, ["numbering", *options, *where], "connected")

    def report(self) -> list[Account]:
        """Say how the connections stand, in the order of the places."""
        return self._accounts("report")

    def brief(self) -> list[Account]:
        """The same, of the arrivals only the last."""
        return self._accounts("brief")

    def finish(self, *, brief: bool = False) -> list[Account]:
        """Have all that was sent acknowledged, and end."""
        return self._accounts("finish brief" if brief else "finish")

    def _accounts(self, command: str) -> list[Account]:
        return [
            Account(each["error"], each["sent"], each["acknowledged"], each["arrivals"]) for each in self.ask(command)
        ]


class RedisLoad(Client):
    """Numbered SETs, GETs and INCRs over one connection."""

    def __init__(self, client: Host, address: str, port: int) -> None:
        super().__init__(client, ["redis_load", address, str(port)], "connected")

    def report(self) -> Account:
        """Say how it stands."""
        return self._account("report")

    def brief(self) -> Account:
        """Say how it stands, of the arrivals only the last: for loads that go on for long."""
        return self._account("brief")

    def finish(self) -> Account:
        """Read every value again, and end."""
        return self._account("finish")

    def wait_more(self, count: int) -> Account:
        """Wait until it has done so many turns more; say how it stands then, or at the first error."""
        wanted = self.report().acknowledged + count
        account = self.report()
        deadline = time.monotonic() + LINE_SECONDS
        while account.acknowledged < wanted and not account.error:
            assert time.monotonic() < deadline, f"the load stands at {account.acknowledged}"
            time.sleep(POLL_SECONDS)
            account = self.report()
        return account

    def _account(self, command: str) -> Account:
        told = self.ask(command)
        return Account(told["error"], told["number"], len(told["done"]), told["done"], told["lost"])


class Knocking(Client):
    """Clients that connect for one line, again and again, `count` at a time."""

    def __init__(self, client: Host, address: str, port: int, count: int, *, patient: bool) -> None:
        argv = ["knocker", address, str(port), str(count)]
        super().__init__(client, [*argv, "patient"] if patient else argv, "knocking")

    def finish(self) -> tuple[list[float], list[Any]]:
        """Stop; give when each was served, and what failed."""
        told = self.ask("")
        assert told["hanging"] == 0
        return told["served"], told["failures"]


class Typing:
    """A program on the client that is typed to, and what it prints. Killed at the end of the `with`.

    Lines `count N` may come at any time, and must come once each, in order.

    Args:
        mark: what to type for a line `end-N` to be printed, with {} for N; typed as it is, it is not that line.
    """

    def __init__(self, client: Host, argv: Sequence[str], mark: str) -> None:
        self.count = 0
        self._mark = mark
        self._asked = 0
        self._process = client.popen(argv, stdin=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._lines = Lines(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def type(self, line: str) -> None:
        """Type a line, and wait for nothing."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self, line: str) -> list[str]:
        """Type a line; give those that it prints."""
        self._asked += 1
        self.type(line)
        self.type(self._mark.format(self._asked))
        answered: list[str] = []
        while (said := self._take()) != f"end-{self._asked}":
            assert said is not None, f"it ended: {answered}"
            answered += [said] if not said.startswith("count ") else []
        return answered

    def wait_count(self, number: int) -> None:
        """Wait until it has counted so far."""
        while self.count < number:
            assert self._take() is not None, f"it ended at {self.count}"

    def end(self) -> int:
        """Wait for its end; give its exit status."""
        while self._take() is not None:
            pass
        return self._process.wait(LINE_SECONDS)

    def _take(self) -> str | None:
        line = self._lines.next()
        if line is None:
            return None
        line = line.rstrip("\r\n")
        if line.startswith("count "):
            assert line == f"count {self.count + 1}", f"{line!r} came after {self.count}"
            self.count += 1
        return line
