"""Runs the programs of corpus/ on the hosts of a lab: asks `phaul check`, then really migrates what it lets go.

Used by test_corpus.py. A program beats into a log of its own; on which host the beat goes on, and from which number,
is all that counts as living. Several run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from phaul.agent.client import AgentClient
from phaul.errors import PhaulError
from phaul.lab.cluster import Lab
from phaul.lab.host import AGENT_SOCKET, Host
from phaul.rpc.v1.facts_pb2 import SEVERITY_REFUSES, MigrationRequest

CORPUS = Path(__file__).parent / "corpus"
PLACE = "/opt/corpus"
PYTHON = {"PYTHONPATH": "/opt", "PYTHONDONTWRITEBYTECODE": "1"}
LOGS = "/var/log/corpus"
AT_ONCE = 4
WAIT_SECONDS = 20.0
POLL_SECONDS = 0.01
SETTLE_SECONDS = 0.15
ALIVE_SECONDS = 5.0
BEATS = 3
# A number below /dev/pts, or a PID, that one program shall find taken would be in the way of the others.
ALONE = ("terminal", "session_leader")


@dataclass(frozen=True, slots=True)
class Program:
    """One program, as its first lines describe it."""

    name: str
    refused: frozenset[str]  # codes; empty where it moves
    both: str = ""
    here: str = ""
    there: str = ""
    life: str = ""
    unseen: str = ""  # why the check cannot know that it does not live afterwards


@dataclass(slots=True)
class Answer:
    """What became of one."""

    missing: str = ""  # what the machine lacks for it
    started: str = ""  # why it did not come up
    codes: frozenset[str] = frozenset()
    beats_on: bool = False  # where it should be by now
    failure: str = ""  # of the migration
    log: str = ""


def programs() -> list[Program]:
    """Read the corpus."""
    return [read(path) for path in sorted(CORPUS.glob("*.py")) if path.stem not in ("__init__", "life")]


def read(path: Path) -> Program:
    """Read the head of one; ValueError where it does not say what its answer shall be."""
    head = dict(re.findall(r"(?m)^# (answer|both|here|there|life|unseen): (.*)$", path.read_text()))
    word, *codes = head.pop("answer", "nothing").split()
    if word not in ("moves", "refused") or (word == "refused") != bool(codes):
        raise ValueError(f"{path.name} has no answer")
    return Program(path.stem, frozenset(codes), **head)


def run_all(lab: Lab, wanted: list[Program]) -> dict[str, Answer]:
    """Run programs, some at once; an answer for each, never an exception."""
    runner = Runner(lab)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip((each.name for each in wanted), pool.map(runner.run, wanted), strict=True))


class Runner:
    """Two hosts of a lab with the corpus on them."""

    def __init__(self, lab: Lab) -> None:
        self._a, self._b = lab.host("a"), lab.host("b")
        self._alone = threading.Lock()
        for host in (self._a, self._b):
            host.path(LOGS).mkdir(exist_ok=True)
            shutil.copytree(CORPUS, host.path(PLACE), ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)

    def run(self, program: Program) -> Answer:
        """Run one, and end what it has started on both hosts; strangers of it end with the lab."""
        answer = Answer()
        with contextlib.ExitStack() as stack:
            if program.name.startswith(ALONE):
                stack.enter_context(self._alone)
            try:
                self._prepare(program, stack)
                self._try(program, answer, stack)
            except Exception as error:  # noqa: BLE001 # one program shall not end the others
                answer.failure = answer.failure or repr(error)
            answer.log = self._log(self._b, program)[-400:] or self._log(self._a, program)[-400:]
        return answer

    def _prepare(self, program: Program, stack: contextlib.ExitStack) -> None:
        for host in (self._a, self._b):
            host.path(_log_of(program)).write_text("")
            if program.both:
                host.exec(["sh", "-c", program.both], env=PYTHON)
        if program.here:
            self._a.exec(["sh", "-c", program.here])
        if program.there:
            stack.callback(_end, self._b, self._b.spawn(["sh", "-c", program.there], log="/dev/null"))
            time.sleep(SETTLE_SECONDS)

    def _try(self, program: Program, answer: Answer, stack: contextlib.ExitStack) -> None:
        first = self._a.spawn(["python3", "-m", f"corpus.{program.name}"], log=_log_of(program), env=PYTHON)
        stack.callback(_end, self._a, first)
        root = self._come_up(program, first, answer)
        if not root:
            return
        if program.life == "helper":
            stack.callback(_end, self._b, self._take_helper(program))
        for host in (self._a, self._b):
            stack.callback(_end, host, root)
        codes, refused = asyncio.run(self._check(root))
        answer.codes = codes
        if refused:
            answer.beats_on = self._goes_on(self._a, program, root)
            return
        answer.failure = asyncio.run(self._migrate(root))
        answer.beats_on = self._goes_on(self._a if answer.failure else self._b, program, root)

    def _come_up(self, program: Program, first: int, answer: Answer) -> int:
        """Wait until it lives as it should; give the root task, 0 where it does not come up."""
        root = first

        def up() -> bool:
            log = self._log(self._a, program)
            if log.startswith("missing: "):
                answer.missing = log.removeprefix("missing: ").strip()
                return True
            if program.life == "silent":
                stat = self._a.stat(first)
                return stat is not None and stat.command == program.name
            return self._beats(self._a, program) >= BEATS

        if not _wait(up):
            answer.started = self._log(self._a, program)[-400:] or "it does not beat"
        if answer.missing or answer.started:
            return 0
        if program.life == "stopped":
            _wait(lambda: self._stands(program))
        if program.life == "child":
            root = int(self._said(program, "root"))
        return root

    def _stands(self, program: Program) -> bool:
        before = self._beats(self._a, program)
        time.sleep(SETTLE_SECONDS)
        return self._beats(self._a, program) == before

    def _goes_on(self, host: Host, program: Program, root: int) -> bool:
        if program.life == "silent":
            return host.running(root)
        if program.life == "stopped":
            if not self._stands(program):
                return False
            if host is self._a:
                return host.running(root)
            host.kill(root, signal.SIGCONT)
        # Never from the beginning: it has to go on from where it was.
        before = max(self._beats(self._a, program), self._beats(host, program))
        going_on = _wait(lambda: self._beats(host, program) >= before + BEATS, ALIVE_SECONDS)
        return going_on and (host.running(root) or program.life == "headless")

    async def _check(self, root: int) -> tuple[frozenset[str], bool]:
        async with AgentClient(self._a.path(AGENT_SOCKET)) as client:
            try:
                report = await client.check(_request(root))
            except PhaulError as error:  # there is nothing that could be looked at
                return frozenset(re.findall(r"(?m)^(\w+):", error.detail)), True
        codes = frozenset(each.code for each in report.problems if each.severity == SEVERITY_REFUSES)
        return codes, bool(codes)

    async def _migrate(self, root: int) -> str:
        """Migrate; give what went wrong, "" where nothing did."""
        async with AgentClient(self._a.path(AGENT_SOCKET)) as client:
            migration_id = await client.start(_request(root))
            async with asyncio.timeout(WAIT_SECONDS):
                async for event in client.watch(migration_id):
                    if event.HasField("finished"):
                        finished = event.finished
                        error = finished.error
                        return f"{error.code}: {error.message} {error.detail}" if finished.HasField("error") else ""
        return "the migration has no end"

    def _take_helper(self, program: Program) -> int:
        """Give the number that CRIU will need for a leader that is gone to somebody else on the destination."""
        wanted = int(self._said(program, "helper"))
        script = (
            'last=$(cat /proc/sys/kernel/ns_last_pid); echo "$1" >/proc/sys/kernel/ns_last_pid; '
            'sleep 1000 </dev/null >/dev/null 2>&1 & echo $!; echo "$last" >/proc/sys/kernel/ns_last_pid'
        )
        got = int(self._b.exec(["setsid", "sh", "-c", script, "sh", str(wanted - 1)]).stdout)
        assert got == wanted, "somebody else was faster"
        return got

    def _log(self, host: Host, program: Program) -> str:
        try:
            return host.path(_log_of(program)).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def _beats(self, host: Host, program: Program) -> int:
        beats = re.findall(r"(?m)^beat (\d+)$", self._log(host, program))
        return int(beats[-1]) if beats else 0

    def _said(self, program: Program, word: str) -> str:
        match = re.search(rf"(?m)^{word} (\d+)$", self._log(self._a, program))
        assert match, f"{program.name} does not say its {word}"
        return match[1]


def _request(root: int) -> MigrationRequest:
    return MigrationRequest(root_pid=root, destination="b:7428")


def _log_of(program: Program) -> str:
    return f"{LOGS}/{program.name}.log"


def _wait(true: Callable[[], bool], seconds: float = WAIT_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _end(host: Host, root: int) -> None:
    """Kill a process and all below it."""
    stats = [host.stat(int(entry.name)) for entry in host.path("/proc").iterdir() if entry.name.isdigit()]
    doomed = [root]
    for pid in doomed:  # grows while it is walked
        doomed += [stat.pid for stat in stats if stat and stat.parent_pid == pid and stat.pid not in doomed]
    for pid in doomed:
        host.kill(pid)
