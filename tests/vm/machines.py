"""What the tests on virtual machines do with them: workloads that tick, migrations, and looks at control groups."""

from __future__ import annotations

from pathlib import Path

from phaul.lab.cluster import Lab
from phaul.lab.host import Host
from phaul.lab.vm_host import VirtualHost
from tests.lab.moves import Move
from tests.lab.witness import PROGRAMS, PYTHON, TICK_PORT, Witness, faults, wait_until

SOURCE_OF_PROGRAMS = Path(__file__).parents[1] / "lab" / "programs"
LOG = "/var/log/workload.log"
AGENT = "phaul-agent.service"
CHILDREN = "/system.slice/phaul-workloads.service/"
# An emulated processor that others use as well: nothing here says how fast phaul is.
PATIENCE_SECONDS = 120.0


def set_up(host: Host) -> None:
    """Put the programs on a host, and what the workloads hold open, alike on each host."""
    directory = host.path(PROGRAMS)
    directory.mkdir(exist_ok=True)
    for program in SOURCE_OF_PROGRAMS.glob("*.py"):
        (directory / program.name).write_bytes(program.read_bytes())
    log = host.path(LOG)
    log.write_text("")
    log.chmod(0o666)


class Workload:
    """A workload that ticks, wherever it is by now. Killed at the end of the `with`. `mark` is in its memory.

    `network` names its network namespace.
    """

    def __init__(
        self,
        lab: Lab,
        witness: Witness,
        host: VirtualHost,
        *argv: str,
        as_user: int = 0,
        mark: str = "",
        network: str = "",
    ) -> None:
        self._lab = lab
        self._witness = witness
        user = str(as_user)
        switched = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"] if as_user else []
        entered = ["nsenter", f"--net=/run/netns/{network}"] if network else []
        command = [
            *entered,
            *switched,
            "python3",
            "-m",
            f"witness.{argv[0]}",
            lab.client.ip4,
            str(TICK_PORT),
            *argv[1:],
        ]
        self.pid = host.spawn(command, log=LOG, env=PYTHON | {"MARK": mark})
        self.wait_ticks()

    def __enter__(self) -> Workload:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._lab.machines:
            if host.running(self.pid):
                host.kill(self.pid)
        for host in self._lab.machines:
            host.wait_ended(self.pid, PATIENCE_SECONDS)

    def wait_ticks(self, count: int = 5) -> None:
        """Wait until it has ticked so many times more."""
        seen = len(self._witness.ticks(self.pid))
        wait_until(
            lambda: len(self._witness.ticks(self.pid)) >= seen + count,
            f"process {self.pid} does not tick",
            PATIENCE_SECONDS,
        )

    def running_on(self) -> list[str]:
        """The machines that have a process with its PID."""
        return [host.name for host in self._lab.machines if host.running(self.pid)]

    def check(self, *path: VirtualHost) -> None:
        """It runs on the last of the machines alone, went that way, and has not ticked twice nor left a tick out."""
        self.wait_ticks()
        assert self.running_on() == [path[-1].name]
        assert faults(self._witness.ticks(self.pid), [host.ip4 for host in path]) == []


def migrate(source: VirtualHost, pid: int, to: VirtualHost, *addresses: str) -> Move:
    """Begin to migrate; the caller waits."""
    return Move(source, pid, to.name, *addresses, patience_seconds=2 * PATIENCE_SECONDS)


def control_group(host: Host, pid: int) -> str:
    """The control group of a process, as its path in the hierarchy."""
    return host.path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")


def main_pid(host: VirtualHost) -> int:
    """The PID of the agent's process, 0 while there is none."""
    return int(host.systemctl("show", "--property=MainPID", "--value", AGENT) or 0)


def wait_active(host: VirtualHost) -> None:
    """Wait until systemd has an agent that says that it serves."""
    wait_until(
        lambda: host.systemctl("is-active", AGENT, check=False) == "active",
        f"the agent of {host.name} does not come back",
        PATIENCE_SECONDS,
    )
