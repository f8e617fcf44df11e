"""Runs cells: a workload with a client, a migration, a fault in its phase, and then what can be seen from outside.

Used by `python -m tests.lab.faults` and by tests/lab/test_faults.py. One lab serves all cells; an agent is started
again only where it was killed or has to be told something else. What phaul says decides nothing: it is only recorded.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

from phaul.lab.cluster import Lab
from phaul.migration.events import Role
from tests.lab import remains
from tests.lab.clients import Numbering
from tests.lab.moves import Move, phaul
from tests.lab.stage import Stage
from tests.lab.witness import Tick, faults, longest_gap, wait_until

from .injection import Injection, wait_stopped
from .link import UNDER_WAY, Link
from .matrix import Catch, Cell, Fault

PORT = 5000
MEMORY_MIB = 24
UNDER_WAY_BYTES = 2 << 20
RESTART_SECONDS = 1.0  # as systemd does
HEAL_SECONDS = 5.0
CUT_SECONDS = 20.0
END_SECONDS = 45.0  # the longest deadline of a call before COMMIT is 30 s
SLOW_END_SECONDS = 150.0
CANCELLED_IN_SECONDS = 0.3  # for the destination to come to its fault point
EXCHANGE_SECONDS = 30.0  # a client's TCP backs off for up to as long as the pause was
LOST = ": lost "  # as `witness.faults` calls a tick that never came
PROMPT_SECONDS = 2.0
RESOLVED_SECONDS = 5.0
FREEZE_LIMIT = ("--freeze-timeout", "5s")
TIDY_SECONDS = 8.0
LEASE_SECONDS = 75.0  # a destination that could not be told that all is off asks after its lease of 60 s
QUIET_SECONDS = 0.3  # a workload that ticks every 5 ms and was not seen for so long does not run
POLL_SECONDS = 0.02
OF_AN_AGENT = "descriptors of the agent"  # says nothing of an agent that was started anew
CUTS = (Fault.CUT, Fault.CUT_FOR_GOOD)
KILLED = {Fault.SOURCE_AGENT: Role.SOURCE, Fault.DESTINATION_AGENT: Role.DESTINATION}


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen of a cell. `status`: of `phaul migrate`, None while it still waited at the end."""

    cell: Cell
    runs_on: str  # source, destination, both, neither
    gap_seconds: float
    connection: str  # alive, or what ended it
    wrong: tuple[str, ...]  # ticks that were doubled, or came from where none may come
    left: tuple[str, ...]
    status: int | None
    told: str  # the code of the error that it ended with
    notes: tuple[str, ...]
    took_seconds: float

    @property
    def safe(self) -> bool:
        """Whether exactly one copy goes on, and there never were two."""
        return self.runs_on in ("source", "destination") and not self.wrong


class Runner:
    """One lab and the faults in it. Owns the lives of its agents."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._link = Link(lab)
        self._hosts = {Role.SOURCE: lab.host("a"), Role.DESTINATION: lab.host("b")}
        self._names = {host.ip4: str(role) for role, host in self._hosts.items()}
        self._environments: dict[Role, Mapping[str, str]] = {role: {} for role in Role}

    def run(self, cell: Cell) -> Result:
        """Run one cell. Nothing of it is in the way of the next."""
        began = time.monotonic()
        self._start_agents({role: cell.environment(role) for role in Role})
        stage = Stage(self._lab)
        try:
            address = stage.add_address(stage.ip4)
            memory = 0 if cell.fault is Fault.SLOW else MEMORY_MIB
            pid = stage.start("server", "--listen", address, str(PORT), "--memory", str(memory))
            with Numbering(stage.client, (address, PORT)) as client:
                stage.wait_exchange(client, 5)
                return self._migrate(cell, stage, pid, client, began)
        finally:
            self._link.heal()
            self._continue()
            stage.clear()

    def _migrate(self, cell: Cell, stage: Stage, pid: int, client: Numbering, began: float) -> Result:
        source, destination = self._hosts.values()
        notes: list[str] = []
        if cell.catch is Catch.UNDER_WAY:
            self._link.slow(UNDER_WAY)
        options = FREEZE_LIMIT if cell.fault in (Fault.CUT_FOR_GOOD, Fault.SLOW) else ()
        with Move(source, pid, destination.ip4, stage.ip4, options=options) as move:
            injection = Injection(source, destination, self._link, move)
            try:
                self._catch(cell, move)
                injection.do(cell.fault)
                self._continue()
                self._see_through(cell, stage, pid, move, notes)
            finally:
                injection.undo()
                self._restart_killed(0)
            self._wait_settled(stage, pid, move, END_SECONDS)
            status = move.wait().status if move.over else None
            told = _error_code(move)
        time.sleep(QUIET_SECONDS)  # what ticked until just now may have ended
        runs_on = self._runs_on(stage, pid)
        connection = self._connection(client)
        ticks = stage.witness.ticks(pid)
        found = faults(ticks, _path(ticks))
        # A device whose queueing is changed drops what it is given meanwhile (net/sched: dev_deactivate), as a tick is
        # UDP. That is not the workload's doing, so it is told and decides nothing.
        wrong = [each for each in found if LOST not in each]
        notes += [each for each in found if LOST in each]
        if _path(ticks) not in ([source.ip4], [source.ip4, destination.ip4]):
            wrong.append("ran on " + ", ".join(self._names[host] for host in _path(ticks)))
        left = self._left(cell, stage, notes)
        gap = longest_gap(ticks, since=move.began, until=time.monotonic())
        return Result(
            cell=cell,
            runs_on=runs_on,
            gap_seconds=gap,
            connection=connection,
            wrong=tuple(wrong),
            left=left,
            status=status,
            told=told,
            notes=tuple(notes),
            took_seconds=time.monotonic() - began,
        )

    def _catch(self, cell: Cell, move: Move) -> None:
        match cell.catch:
            case Catch.STOPPED:
                wait_stopped(self._hosts[cell.role], lambda: not move.over)
            case Catch.UNDER_WAY:
                move.wait_progress(UNDER_WAY_BYTES)
            case Catch.PAUSED:
                move.wait_phase(cell.phase)
                if cell.role is Role.DESTINATION:
                    time.sleep(CANCELLED_IN_SECONDS)
            case Catch.NOT_AT_ALL:
                pass

    def _see_through(self, cell: Cell, stage: Stage, pid: int, move: Move, notes: list[str]) -> None:
        """Do what is done from outside after a fault, and wait for the end as long as this cell may take."""
        match cell.fault:
            case Fault.SOURCE_AGENT | Fault.DESTINATION_AGENT:
                self._restart_killed(RESTART_SECONDS)
            case Fault.CUT:
                time.sleep(HEAL_SECONDS)
                self._link.heal()
            case Fault.TERMINAL:
                # The command, which would tell when it is over, is gone; the migration should not care.
                wait_until(lambda: self._runs_on(stage, pid) == "destination", "", END_SECONDS)
                return
            case Fault.CUT_FOR_GOOD:
                if not self._wait_settled(stage, pid, move, CUT_SECONDS):
                    notes.append(f"after {CUT_SECONDS:g} s: {self._standing(stage, pid)}, {_told(move)}")
                    self._resolve(stage, pid, move, notes)
                return
        seconds = SLOW_END_SECONDS if cell.fault is Fault.SLOW else END_SECONDS
        if not self._wait_settled(stage, pid, move, seconds):
            notes.append(f"after {seconds:g} s: {self._standing(stage, pid)}, {_told(move)}")

    def _resolve(self, stage: Stage, pid: int, move: Move, notes: list[str]) -> None:
        """Decide as a person would who knows that the source will not run it: the tree there is dead."""
        command = ["resolve", move.id, "--resume-here", "--yes"]
        said = phaul(self._hosts[Role.DESTINATION], *command)
        ran = self._wait_running(stage, pid, RESOLVED_SECONDS)
        notes.append(
            f"`phaul {' '.join(command).replace(move.id, 'ID')}` on the destination: exit {said.returncode}, "
            + (f"runs on the {self._runs_on(stage, pid)}" if ran else "does not run")
        )

    def _wait_running(self, stage: Stage, pid: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._runs_on(stage, pid) == "neither":
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _wait_settled(self, stage: Stage, pid: int, move: Move, seconds: float) -> bool:
        """Wait until the command has ended and the workload runs; False when that does not come."""
        deadline = time.monotonic() + seconds
        while not (move.over and self._runs_on(stage, pid) != "neither"):
            if time.monotonic() > deadline:
                return False
            if move.over and not any(host.stat(pid) for host in self._hosts.values()) and _quiet_since(
                stage, pid
            ) > max(TIDY_SECONDS, QUIET_SECONDS):  # fmt: skip
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _runs_on(self, stage: Stage, pid: int) -> str:
        """Say from whom ticks have come lately."""
        heard = self._heard(stage, pid)
        if len(heard) > 1:
            # The last ticks of the one that stopped may be nearly as young as the first ones of the other.
            time.sleep(QUIET_SECONDS)
            heard = self._heard(stage, pid)
        return "neither" if not heard else "both" if len(heard) > 1 else self._names[heard.pop()]

    def _heard(self, stage: Stage, pid: int) -> set[str]:
        return {tick.sender for tick in stage.witness.ticks(pid, since=time.monotonic() - QUIET_SECONDS)}

    def _standing(self, stage: Stage, pid: int) -> str:
        """Say what there is of the workload, also where it does not run."""
        found = [f"running on the {self._runs_on(stage, pid)}"]
        for role, host in self._hosts.items():
            stat = host.stat(pid)
            found.append(f"{stat.state if stat else 'none'} on the {role}")
        return ", ".join(found)

    def _connection(self, client: Numbering) -> str:
        """Say whether blocks flow on the client's connection."""
        deadline = time.monotonic() + EXCHANGE_SECONDS
        began = time.monotonic()
        (before,) = client.report()
        while True:
            (now,) = client.report()
            if now.error:
                return now.error
            if now.acknowledged > before.acknowledged + 2:
                waited = time.monotonic() - began
                return "alive" if waited < PROMPT_SECONDS else f"alive, {waited:.1f} s later"
            if time.monotonic() > deadline:
                return f"silent for {EXCHANGE_SECONDS:g} s"
            time.sleep(POLL_SECONDS)

    def _left(self, cell: Cell, stage: Stage, notes: list[str]) -> tuple[str, ...]:
        """Clear what the test itself has made and say what is left then, on both hosts."""
        self._continue()
        stage.clear()
        began = time.monotonic()
        deadline = began + (LEASE_SECONDS if cell.fault in CUTS else TIDY_SECONDS)
        while True:
            left = []
            for role, host in self._hosts.items():
                try:
                    changes = remains.difference(stage.before[host], remains.look(host))
                except AssertionError as error:
                    changes = {"the agent": str(error)}
                if KILLED.get(cell.fault) is role:
                    changes.pop(OF_AN_AGENT, None)
                left += [f"{role}: {kind}: {what}" for kind, what in changes.items()]
            waited = time.monotonic() - began
            if not left and waited > TIDY_SECONDS:
                notes.append(f"both hosts were as before {waited:.0f} s later")
            if not left or time.monotonic() > deadline:
                return tuple(left)
            time.sleep(POLL_SECONDS)

    def _start_agents(self, environments: Mapping[Role, Mapping[str, str]]) -> None:
        """Have both agents run, told what they are to be told."""
        wrong = [
            role
            for role, host in self._hosts.items()
            if host.agent_pid is None or self._environments[role] != environments[role]
        ]
        for role in wrong:
            self._hosts[role].kill_agent()
            self._launch(role, environments[role])
        for role in wrong:
            self._hosts[role].wait_agent()

    def _restart_killed(self, after_seconds: float) -> None:
        """Start again what was killed, without a fault to come."""
        killed = [role for role, host in self._hosts.items() if host.agent_pid is None]
        if killed:
            time.sleep(after_seconds)
        for role in killed:
            self._launch(role, {})
        for role in killed:
            self._hosts[role].wait_agent()

    def _launch(self, role: Role, environment: Mapping[str, str]) -> None:
        self._hosts[role].launch_agent(env=environment)
        self._environments[role] = environment

    def _continue(self) -> None:
        """Let an agent that has stopped itself go on."""
        for host in self._hosts.values():
            if host.agent_pid is not None:
                host.kill(host.agent_pid, signal.SIGCONT)


def _path(ticks: list[Tick]) -> list[str]:
    """Give the hosts in the order in which ticks came from them."""
    senders = [tick.sender for tick in ticks]
    return [host for index, host in enumerate(senders) if index == 0 or host != senders[index - 1]]


def _quiet_since(stage: Stage, pid: int) -> float:
    ticks = stage.witness.ticks(pid)
    return time.monotonic() - ticks[-1].arrived if ticks else 0.0


def _error_code(move: Move) -> str:
    """Give what the last line that was printed calls the error, if it was one."""
    error = move.events[-1].get("error") if move.events else None
    return str(error["code"]) if error else ""


def _told(move: Move) -> str:
    return "the command has ended" if move.over else "the command waits"
