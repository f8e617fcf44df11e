"""One test's use of a lab: workloads on its hosts, floating addresses, the witness, and the check that all is gone.

The fixture `stage` of conftest.py makes one for each test. What a test starts or adds here ends with it, on whichever
host it is by then; after that both hosts must be as they were before.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from phaul.lab.cluster import Lab
from phaul.lab.host import Host
from phaul.workloads.obstacles.tasks import CAP_SYS_RESOURCE

from . import remains
from .clients import Numbering
from .moves import Move, migrate
from .witness import PROGRAMS, PYTHON, TICK_PORT, Tick, Witness, faults, longest_gap, wait_until

SOURCE_OF_PROGRAMS = Path(__file__).parent / "programs"
# Each test has floating addresses of its own: no neighbour remembers where an earlier test had them.
FLOATING = itertools.cycle(range(100, 175))  # not those of the test before; 80 more are for second addresses
DEVICE = "eth0"
WORKLOAD_LOG = "/var/log/workload.log"
SOCKETS = "/run/witness"  # a directory of both hosts, for sockets with a path
ASK_PORT = 7900
END_SECONDS = 10.0
# What the outside sees is longer than what phaul reports only by the ticks' own distance and by waiting for processors.
WITNESS_SLACK_SECONDS = 0.25
# A workload that ticks every 5 ms and was not stopped may still have waited for a processor. The shortest stop that
# CRIU was seen to make, of a dump that fails at once, is three times as long.
NO_GAP_SECONDS = 0.1

ASK = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=60) as peer:
    peer.sendall(sys.argv[2].encode())
    print(peer.makefile().readline(), end="")
"""


class Stage:
    """A lab for one test. Owns the workloads that it has started and the addresses that it has added, on both hosts."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.a, self.b, self.client = lab.host("a"), lab.host("b"), lab.client
        number = next(FLOATING)
        self.ip4, self.ip6 = f"10.77.0.{number}/24", f"fd00:77::{number}/64"
        self._roots: list[int] = []
        self._addresses: list[tuple[str, str]] = []
        for host in lab.members:
            _set_up(host)
        self.before = {host: remains.look(host) for host in lab.hosts.values()}
        self.witness = Witness(self.client)

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
        if error is None:
            for host, before in self.before.items():
                remains.assert_as_before(host, before)

    def clear(self) -> None:
        """End what was started and remove what was added, wherever that is by now."""
        try:
            self.clear_workloads()
            for host in self.lab.hosts.values():
                _clear(host)
            for address, device in self._addresses:
                for host in self.lab.hosts.values():
                    host.exec(["ip", "addr", "del", address, "dev", device], check=False)
        finally:
            self.witness.close()

    def look_again(self) -> None:
        """What stands on the hosts now is how they shall be at the end."""
        self.before = {host: remains.look(host) for host in self.lab.hosts.values()}

    def other(self, host: Host) -> Host:
        """Give the other host."""
        return self.b if host is self.a else self.a

    def add_address(self, address: str, host: Host | None = None, device: str = DEVICE) -> str:
        """Put a floating address on a host (a); give it without its prefix length."""
        self._addresses.append((address, device))
        at_once = ["nodad"] if ":" in address else []
        (host or self.a).exec(["ip", "addr", "add", address, "dev", device, *at_once])
        return address.partition("/")[0]

    def has_address(self, host: Host, address: str) -> bool:
        """Ask the kernel whether an address is on a host."""
        shown = host.exec(["ip", "-o", "addr", "show", "to", address.partition("/")[0]]).stdout
        return address in shown

    def spawn(self, argv: Sequence[str], host: Host | None = None) -> int:
        """Start any workload on a host (a); give its PID."""
        pid = (host or self.a).spawn(argv, log=WORKLOAD_LOG, env=PYTHON)
        self._roots.append(pid)
        return pid

    def start(self, program: str, *arguments: str, host: Host | None = None) -> int:
        """Start one of the programs that tick, and wait for its first ticks."""
        pid = self.spawn(["python3", "-m", f"witness.{program}", self.client.ip4, str(TICK_PORT), *arguments], host)
        try:
            self.witness.wait_ticks(pid)
        except AssertionError as error:
            raise AssertionError(f"{error}: {(host or self.a).path(WORKLOAD_LOG).read_text()[-2000:]}") from None
        return pid

    def start_redis(self, address: str, port: int) -> int:
        """Start Redis on a and wait until it listens; give its PID."""
        where = ["--bind", address, "--port", str(port), "--dir", "/tmp"]
        pid = self.spawn(["redis-server", *where, "--save", "", "--protected-mode", "no"])
        self.wait_listening(self.a, port)
        return pid

    def ask(self, host: Host, command: str, port: int = ASK_PORT) -> Any:
        """Ask a server.py on a host about itself."""
        return json.loads(host.exec(["python3", "-c", ASK, str(port), command]).stdout)

    def move(self, pid: int, source: Host, *addresses: str, to: str = "", options: Sequence[str] = ()) -> Move:
        """Migrate to the other host; check from outside that the tree and the addresses are there and not here."""
        destination = self.other(source)
        move = migrate(source, pid, to or destination.name, *addresses, options=options)
        assert move.report["new_pid"] == pid
        source.wait_ended(pid, END_SECONDS)
        assert destination.running(pid)
        for address in addresses:
            plain = address.partition("@")[0]
            assert not self.has_address(source, plain), f"{plain} is still on {source.name}"
            assert self.has_address(destination, plain), f"{plain} is not on {destination.name}"
        return move

    def check_ticks(self, pid: int, *path: Host) -> list[Tick]:
        """Let a workload tick a while on the last host of its path; no tick may be lost, doubled or misplaced."""
        ticks = self.witness.ticks(pid)
        streams = len({tick.stream for tick in ticks})
        self.witness.wait_ticks(pid, 20 * streams, since=ticks[-1].arrived, sender=path[-1].ip4)
        ticks = self.witness.ticks(pid)
        found = faults(ticks, [host.ip4 for host in path])
        assert not found, found
        return ticks

    def check_downtime(self, move: Move, ticks: Sequence[Tick]) -> None:
        """The pause that the outside saw is about as long as phaul says."""
        seen = longest_gap(ticks, since=move.phase_at("freeze"), until=move.ended)
        told = move.report["downtime_us"] / 1e6
        assert seen <= told + WITNESS_SLACK_SECONDS, (
            f"the witness saw a pause of {seen:.3f} s, phaul tells {told:.3f} s"
        )

    def check_undisturbed(self, pid: int, since: float) -> None:
        """A workload that ticks on a has not stood still since a moment."""
        ticks = self.check_ticks(pid, self.a)
        assert longest_gap(ticks, since=since) < NO_GAP_SECONDS

    def refused(self, pid: int, *addresses: str, to: str = "b", code: str = "PreflightError") -> dict[str, Any]:
        """Try to migrate from a what cannot go; give the error, which must say why in one sentence and what to do."""
        move = migrate(self.a, pid, to, *addresses)
        error = move.error
        assert error["code"] == code, move.told()
        assert error["where"] == "untouched"
        assert move.status == error["exit_status"]
        assert move.status in (10, 11, 12, 13)
        assert "\n" not in error["message"]
        assert error["message"]
        assert error["hint"]
        return error

    def work_done(self, pid: int) -> dict[int, int]:
        """Give what each stream of a ticking workload has done, by its latest tick."""
        return {tick.stream: tick.work for tick in self.witness.ticks(pid)}

    def wait_work(self, pid: int, wanted: dict[int, int]) -> None:
        """Wait until every stream has done so much."""
        wait_until(
            lambda: all(self.work_done(pid).get(stream, 0) >= work for stream, work in wanted.items()),
            f"process {pid} stands still",
        )

    def descendants(self, host: Host, pid: int) -> dict[int, int]:
        """Give the processes of a tree (of a session that its root leads), each with its parent."""
        stats = [host.stat(int(entry.name)) for entry in host.path("/proc").iterdir() if entry.name.isdigit()]
        return {
            stat.pid: stat.parent_pid if stat.pid != pid else 0 for stat in stats if stat and stat.session_id == pid
        }

    def thread_ids(self, host: Host, pid: int) -> set[int]:
        """Give the threads of a process."""
        return {int(entry.name) for entry in host.path(f"/proc/{pid}/task").iterdir()}

    def wait_listening(self, host: Host, port: int) -> None:
        """Wait until something listens at a port."""
        asked = ["ss", "-Htln", f"sport = :{port}"]
        wait_until(lambda: bool(host.exec(asked).stdout), f"nobody listens at port {port}")

    def backlog(self, host: Host, port: int) -> int:
        """Give how many connections may wait at a listening port (for a listener ss tells it as Send-Q)."""
        return int(host.exec(["ss", "-Htln", f"sport = :{port}"]).stdout.split()[2])

    def send_queue_bytes(self, host: Host, port: int) -> int:
        """Give how much the connections of a server have not got rid of yet."""
        lines = host.exec(["ss", "-Htn", f"sport = :{port}"]).stdout.splitlines()
        return sum(int(line.split()[2]) for line in lines)

    def wait_greeted(self, host: Host, count: int) -> None:
        """Wait until a server has greeted so many."""
        wait_until(lambda: self.ask(host, "counts")["greeted"] >= count, f"{count} clients are not greeted")

    def wait_exchange(self, client: Numbering, blocks: int = 30) -> None:
        """Wait until every connection has had some more blocks acknowledged."""
        wanted = [account.acknowledged + blocks for account in client.brief()]

        def enough() -> bool:
            accounts = client.brief()
            assert not any(account.error for account in accounts), [account.error for account in accounts]
            return all(account.acknowledged >= want for account, want in zip(accounts, wanted, strict=True))

        wait_until(enough, "the blocks do not flow")

    def clear_workloads(self) -> None:
        """End what was started, on whichever host it is."""
        for host in self.lab.hosts.values():
            for entry in host.path("/proc").iterdir():
                stat = host.stat(int(entry.name)) if entry.name.isdigit() else None
                if stat is not None and stat.session_id in self._roots:
                    host.kill(int(entry.name))
        for host in self.lab.hosts.values():
            for pid in self._roots:
                host.wait_ended(pid, END_SECONDS)


def _set_up(host: Host) -> None:
    """Put the programs on a host, and what the workloads hold open, alike on each host."""
    programs = host.path(PROGRAMS)
    programs.mkdir(exist_ok=True)
    for program in SOURCE_OF_PROGRAMS.glob("*.py"):
        shutil.copyfile(program, programs / program.name)
    sockets = host.path(SOCKETS)
    sockets.mkdir(exist_ok=True)
    log = host.path(WORKLOAD_LOG)
    log.write_text("")
    log.chmod(0o644)


def _clear(host: Host) -> None:
    """Remove what a workload leaves behind by itself when it is killed: the names of its sockets."""
    for left in host.path(SOCKETS).iterdir():
        left.unlink()


def may_use_resources(host: Host) -> bool:
    """Whether root of a host has CAP_SYS_RESOURCE: to dump others' processes, to spare its own when memory runs out.

    Machines that are containers themselves give their root less. Virtual machines of the lab have it all.
    """
    status = host.path(f"/proc/{host.agent_pid}/status").read_text()
    (capabilities,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(capabilities, 16) & CAP_SYS_RESOURCE)
