"""One soak: how it goes on, and what it finds in the end.

Called by `python -m tests.soak` and, shorter, by tests/lab/test_soak.py. Every fourth move meets a fault, drawn from a
seeded generator, at a moment drawn as well: unlike the fault matrix it hits anywhere. The witness and the load judge.
One exception: CRIU on the source is not killed in the middle of a call in the workload's name (`injected_calls`).
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from phaul.errors import PhaulError
from phaul.lab.cluster import Lab
from phaul.lab.host import Host
from tests.lab import remains
from tests.lab.clients import Account, RedisLoad
from tests.lab.faults.injected_calls import kill_between_calls
from tests.lab.faults.injection import Injection, criu_of
from tests.lab.faults.link import Link
from tests.lab.faults.matrix import Fault
from tests.lab.moves import Move
from tests.lab.stage import Stage
from tests.lab.witness import faults, longest_gap, wait_until

FAULTS = (
    Fault.SOURCE_AGENT,
    Fault.DESTINATION_AGENT,
    Fault.SOURCE_CRIU,
    Fault.DESTINATION_CRIU,
    Fault.CUT,
    Fault.TERMINAL,
    Fault.CANCEL,
    Fault.FULL,
)
AGENTS = (Fault.SOURCE_AGENT, Fault.DESTINATION_AGENT)
FAULT_EVERY = 4
FAULT_WITHIN_SECONDS = 0.1  # of the first event, or of the life of what is broken: a move takes about so long
CUT_SECONDS = (0.2, 3.0)
RESTART_SECONDS = 1.0  # as systemd does
REDIS_PORT = 6379
BLOCKS, BLOCK_BYTES = 16_000, 4096  # what Redis holds besides the values: 64 MiB
TURNS_BETWEEN = 5  # of the load, at least, from one move to the next
SETTLE_SECONDS = 40.0
QUIET_SECONDS = 0.3
MOVED_SECONDS = 10.0
PATIENCE_SECONDS = 1.0  # for a CRIU that is to be killed to be there
# In the life of an agent, after which it has loaded all its code, remembers as many migrations as it ever will (32 that
# left, 32 that came), and its allocator has found its size. Measured over 300 moves of this Redis without a fault:
# 82 MB after 4 moves, 91 MB after 64, 95 MB after 130, and 95 to 96 MB from there to the 300th.
WARM_MOVES = 130
LOOKS = 10
KILLING_SHARE = 1 / 5  # agents are killed in the first moves only: after that they must live long enough to be measured
GROWTH_LIMIT_BYTES = 5 << 20
SETTLED_KINDS = ("tables of nftables", "rules of iptables", "mounts", "files of phaul")

Say = Callable[[str], None]


@dataclass(slots=True)
class Life:
    """An agent from one start to its end. `warm_bytes`: its memory once it was warm, 0 before.

    `looks` are the newest at its memory. The least of them counts: buffers of some MiB that await their collection come
    and go, what is lost stays.
    """

    moves: int = 0
    warm_bytes: int = 0
    looks: deque[int] = field(default_factory=lambda: deque(maxlen=LOOKS))


@dataclass(slots=True)
class Outcome:
    """What a soak came to. `wrong` is empty when all is well."""

    moves: int = 0
    completed: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    too_late: int = 0  # faults that found nothing left to break
    values: int = 0
    longest_gap_seconds: float = 0.0
    grown_bytes: int = 0
    wrong: list[str] = field(default_factory=list)


class Soak:
    """One workload on one lab. Owns neither."""

    def __init__(self, lab: Lab, seed: int, say: Say) -> None:
        self._hosts = list(lab.hosts.values())
        self._link = Link(lab)
        self._random = random.Random(seed)
        self._say = say
        self._lives = {host.name: Life() for host in self._hosts}
        self._agents = {host.name: host.agent_pid for host in self._hosts}
        self._stage = Stage(lab)
        self._pid = 0
        self._wanted = 0
        self._path: list[Host] = []
        self.outcome = Outcome()

    def run(self, moves: int, fault_every: int = FAULT_EVERY, limit_seconds: float = float("inf")) -> Outcome:
        """Move so often, or until the time is up. Raises nothing that a move did: it stands in the outcome."""
        stage, outcome = self._stage, self.outcome
        self._wanted = moves
        try:
            address = stage.add_address(stage.ip4)
            redis = ["--bind", address, "--port", str(REDIS_PORT), "--dir", "/tmp", "--save", ""]
            redis += ["--enable-debug-command", "yes"]
            self._pid = stage.start("ticking_redis", *redis, "--protected-mode", "no")
            stage.wait_listening(stage.a, REDIS_PORT)
            self._path = [stage.a]
            stage.a.exec(["redis-cli", "-h", address, "debug", "populate", str(BLOCKS), "block", str(BLOCK_BYTES)])
            deadline = time.monotonic() + limit_seconds
            with RedisLoad(stage.client, address, REDIS_PORT) as load:
                while outcome.moves < moves and not outcome.wrong:
                    if time.monotonic() > deadline:
                        outcome.wrong.append(f"the time was up after {outcome.moves} of {moves} moves")
                        break
                    outcome.moves += 1
                    self._turn(load, with_fault=outcome.moves % fault_every == 0)
                self._judge_load(load.finish())
            self._judge_ticks()
        finally:
            self._link.heal()
            stage.clear()
        self._judge_remains()
        return outcome

    def _turn(self, load: RedisLoad, *, with_fault: bool) -> None:
        """Move once, with or without a fault, and wait until both hosts have settled."""
        source = self._path[-1]
        number = self.outcome.moves
        before = load.brief().sent
        fault = self._random.choice(self._faults()) if with_fault else None
        told = ""
        with Move(source, self._pid, self._stage.other(source).ip4, self._stage.ip4) as move:
            if fault is not None:
                told = self._break(fault, move, source)
            wait_until(lambda: move.over, f"move {number} ({fault}) does not end", SETTLE_SECONDS)
            move.wait()
        try:
            ends_on = self._settle(source, moving=fault is Fault.TERMINAL)
            wait_until(
                lambda: load.brief().sent >= before + TURNS_BETWEEN or bool(load.brief().error),
                f"move {number}: the load stands still",
                SETTLE_SECONDS,
            )
        except AssertionError as error:
            self.outcome.wrong.append(f"move {number} ({fault}, exit {move.status}): {error}")
            return
        completed = ends_on is not source
        self.outcome.completed += completed
        if completed:
            self._path.append(ends_on)
        elif fault is None:
            self.outcome.wrong.append(f"move {number} without a fault: {move.told()}")
        broken = load.brief().error
        if broken:
            self.outcome.wrong.append(f"move {number} ({fault}, exit {move.status}): the connection broke: {broken}")
        self.outcome.too_late += fault is Fault.CANCEL and completed  # `phaul cancel` takes longer than most moves
        if fault is not None:
            where = "moved" if completed else "rolled back"
            self._say(f"move {number}: {fault} {told}: {where}, exit {move.status}")
        self._look_at_agents()

    def _faults(self) -> tuple[Fault, ...]:
        early = self.outcome.moves <= self._wanted * KILLING_SHARE
        return (
            FAULTS if early or self._wanted <= WARM_MOVES else tuple(fault for fault in FAULTS if fault not in AGENTS)
        )

    def _break(self, fault: Fault, move: Move, source: Host) -> str:
        """Do a fault at some moment of a move; say when. One that comes too late is told as such."""
        destination = self._stage.other(source)
        injection = Injection(source, destination, self._link, move, PATIENCE_SECONDS)
        delay_seconds = self._random.uniform(0, FAULT_WITHIN_SECONDS)
        cut_seconds = self._random.uniform(*CUT_SECONDS)
        self.outcome.faults[str(fault)] += 1
        room = destination.path(f"/run/phaul/images/{move.id}")
        told = f"after {delay_seconds:.3f} s"
        try:
            match fault:
                case Fault.SOURCE_CRIU | Fault.DESTINATION_CRIU:
                    criu_of(source if fault is Fault.SOURCE_CRIU else destination, PATIENCE_SECONDS)
                    told += " of CRIU's life"
                case Fault.FULL:
                    wait_until(room.is_dir, "there is no room", PATIENCE_SECONDS)
                    told += " of the room's life"
            time.sleep(delay_seconds)
            if fault is Fault.SOURCE_CRIU:
                criu = criu_of(source, PATIENCE_SECONDS)
                kill_between_calls(source, criu, self._pid, PATIENCE_SECONDS)
            else:
                injection.do(fault)
        except (AssertionError, OSError, PhaulError):  # what was to be broken is not there, or not any more
            self.outcome.too_late += 1
            told = "came too late"
        if fault is Fault.CUT:
            time.sleep(cut_seconds)
            told += f" for {cut_seconds:.1f} s"
        injection.undo()
        killed = [host for host in self._hosts if host.agent_pid is None]
        if killed:
            time.sleep(RESTART_SECONDS)
        for host in killed:
            host.start_agent()
        return told

    def _settle(self, source: Host, *, moving: bool) -> Host:
        """Wait until the workload runs on one host and a migration has left nothing on either; give the host.

        `moving`: the command was ended, the migration goes on; it must come to its end by itself.
        """
        if moving:
            wait_until(lambda: self._heard() == [self._stage.other(source)], "it does not move on", MOVED_SECONDS)
        unsettled: dict[str, str] = {}

        def settled() -> bool:
            unsettled.clear()
            for host in self._hosts:
                changes = remains.difference(self._stage.before[host], remains.look(host))
                unsettled.update({f"{host.name}: {kind}": changes[kind] for kind in SETTLED_KINDS if kind in changes})
            return not unsettled and len(self._heard()) == 1

        try:
            wait_until(settled, "", SETTLE_SECONDS)
        except AssertionError:
            heard = ", ".join(host.name for host in self._heard()) or "nowhere"
            raise AssertionError(f"not settled after {SETTLE_SECONDS:g} s: it runs {heard}; {unsettled}") from None
        return self._heard()[0]

    def _heard(self) -> list[Host]:
        """Give the hosts from which ticks have come lately."""
        ticks = self._stage.witness.ticks(self._pid, since=time.monotonic() - QUIET_SECONDS)
        senders = {tick.sender for tick in ticks}
        return [host for host in self._hosts if host.ip4 in senders]

    def _look_at_agents(self) -> None:
        for host in self._hosts:
            if host.agent_pid != self._agents[host.name]:
                self._agents[host.name] = host.agent_pid
                self._lives[host.name] = Life()
            life = self._lives[host.name]
            life.moves += 1
            life.looks.append(remains.agent_resident_bytes(host))
            if life.moves == WARM_MOVES:
                life.warm_bytes = min(life.looks)
            elif life.moves >= WARM_MOVES + LOOKS:
                self.outcome.grown_bytes = max(self.outcome.grown_bytes, min(life.looks) - life.warm_bytes)

    def _judge_load(self, account: Account) -> None:
        outcome = self.outcome
        outcome.values = account.sent
        if account.lost:
            outcome.wrong.append(f"{account.lost} values are lost")
        if account.error and not any(account.error in each for each in outcome.wrong):
            outcome.wrong.append(f"the load: {account.error}")

    def _judge_ticks(self) -> None:
        ticks = self._stage.witness.ticks(self._pid)
        self.outcome.longest_gap_seconds = longest_gap(ticks)
        self.outcome.wrong += faults(ticks, [host.ip4 for host in self._path])

    def _judge_remains(self) -> None:
        for host in self._hosts:
            try:
                remains.assert_as_before(host, self._stage.before[host])
            except AssertionError as error:
                self.outcome.wrong.append(str(error))
        if self.outcome.grown_bytes > GROWTH_LIMIT_BYTES:
            self.outcome.wrong.append(f"an agent has grown by {self.outcome.grown_bytes} bytes")
