"""One host of a lab: its namespaces and first process, and everything one does on it.

Called by `phaul.lab.cluster`, and through it by tests, benchmarks and the demo. A host is entered with nsenter; a
process that is to be migrated is started with `spawn`, which leaves no descriptor in it from outside the host. Never
touches another host, or the machine's own namespaces.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from phaul.errors import LabError
from phaul.lab import cgroups, commands, recipe, records
from phaul.lab.records import HostDescription, ProcessRecord
from phaul.system import procfs

AGENT_SOCKET = "/run/phaul/agent.sock"
AGENT_LOG = "/var/log/phaul-agent.log"
AGENT_COMMAND = ("phaul", "agent", "--listen", "[::]:7428", "--insecure")
AGENT_DEADLINE_SECONDS = 20.0  # half a second is usual; compiling phaul's modules for a new image takes a few
SHARED_NAME = "shared"
SHARED_DIRECTORY = f"/srv/{SHARED_NAME}"  # on every host the same files, as boot.sh mounts it
HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERMINAL_VARIABLES = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
POLL_SECONDS = 0.005

# Enter the groups of the host first: inside, they are out of sight.
_JOIN = 'while [ "$1" != -- ]; do echo 0 >"$1"; shift; done; shift; '
_ENTER = _JOIN + 'exec "$@"'
# A terminal's Ctrl-C reaches nsenter and the command; nsenter has to stay and hand on how the command ended.
_ENTER_INTERACTIVELY = 'trap "" INT QUIT; ' + _ENTER
_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
# Inside: a log, a directory and a command. The PID is told before the log replaces our pipe, and exec keeps it.
_SPAWN = """command -v "$3" >/dev/null || { echo "there is no command $3" >&2; exit 127; }
exec setsid --fork /bin/sh -c 'cd "$1" && echo $$ && log=$0 && shift && exec "$@" </dev/null >>"$log" 2>&1' "$@"
"""


class Host:
    """One host.

    Invariant: while `alive`, the recorded process is the parent of the host's PID 1, and its death is the end of every
    process of the host. Owns nothing but what stands in the lab's directory: two objects may serve the same host.
    """

    def __init__(self, description: HostDescription, directory: Path) -> None:
        self.name = description.name
        self.ip4 = description.ip4
        self.ip6 = description.ip6
        self.mac = description.mac
        self.description = description
        self._directory = directory
        self._pid: int | None = None

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.ip4}>"

    @property
    def record_file(self) -> Path:
        """Where the process that holds the host up has recorded itself."""
        return self._directory / f"{self.name}.process"

    @property
    def log(self) -> Path:
        """What was said while the host was starting (on the machine)."""
        return self._directory / f"{self.name}.log"

    @property
    def holder(self) -> ProcessRecord | None:
        """The process that holds the host up, None when the host was never started."""
        return ProcessRecord.read(self.record_file)

    @property
    def alive(self) -> bool:
        """Whether the host is up."""
        holder = self.holder
        return holder is not None and holder.alive

    @property
    def pid(self) -> int:
        """The PID of the host's PID 1 as the machine sees it."""
        if self._pid is None or not self.alive:
            holder = self.holder
            self._pid = records.child_of(holder.pid) if holder and holder.alive else None
            if self._pid is None:
                raise LabError(f"Host {self.name} is not up.", hint="`phaul lab status` tells; `phaul lab up` starts.")
        return self._pid

    @property
    def root(self) -> Path:
        """The host's file system as the machine can open it."""
        return Path(f"/proc/{self.pid}/root")

    def path(self, path: str) -> Path:
        """A file of the host, given as the host sees it, as the machine can open it."""
        return self.root / path.lstrip("/")

    def launch(self, image: Path, hosts_file: str, group: Path | None) -> subprocess.Popen[bytes]:
        """Start the host's first process; it is up once `commands.wait_ready` has returned for it."""
        directory = self._directory / self.name
        directory.mkdir()
        environment = {
            "PATH": HOST_PATH,
            "LAB_DIRECTORY": str(directory),
            "LAB_IMAGE": str(image),
            "LAB_SOURCE": str(recipe.source_directory()),
            "LAB_SHARED": str(self._directory / SHARED_NAME),
            "LAB_HOSTNAME": self.name,
            "LAB_HOSTS": hosts_file,
            "LAB_MACHINE_ID": hashlib.md5(self.mac.encode(), usedforsecurity=False).hexdigest(),
            "LAB_FIRST_PID": str(self.description.first_pid),
            "LAB_CGROUP": "yes" if group else "",
        }
        unshare = [commands.find("unshare"), *_NAMESPACES, "--fork", "--kill-child", "--propagation", "private"]
        boot = ["/bin/sh", str(Path(__file__).with_name("boot.sh"))]
        return commands.start_detached(
            recorded(self.record_file, group, [*unshare, "--", *boot]), self.log, env=environment
        )

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout_seconds: float = commands.DEFAULT_TIMEOUT_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end; with `check`, one that fails is a `LabError`."""
        entered = self._entered(_ENTER, _as_foreground(argv))
        done = commands.run(entered, input=input, env=_environment(env), check=False, timeout_seconds=timeout_seconds)
        if check and done.returncode != 0:
            raise commands.failure(argv, done.returncode, done.stderr or done.stdout)
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: commands.Stream = subprocess.DEVNULL,
        stdout: commands.Stream = subprocess.PIPE,
        stderr: commands.Stream = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Start a command on the host and leave it to the caller; killing it sends SIGTERM to the command."""
        entered = self._entered(_ENTER, _as_foreground(argv))
        return commands.start(entered, env=_environment(env), stdin=stdin, stdout=stdout, stderr=stderr)

    def interact(self, argv: Sequence[str]) -> int:
        """Run a command on the host with the caller's own terminal, and return its exit status."""
        kept = {name: os.environ[name] for name in TERMINAL_VARIABLES if name in os.environ}
        entered = self._entered(_ENTER_INTERACTIVELY, _as_foreground(argv))
        with commands.start(entered, env=_environment(kept), stdin=None, stdout=None, stderr=None) as process:
            previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                status = process.wait()
            finally:
                signal.signal(signal.SIGINT, previous)
        return status if status >= 0 else 128 - status

    def spawn(
        self,
        argv: Sequence[str],
        *,
        log: str = "/var/log/workload.log",
        env: Mapping[str, str] | None = None,
        directory: str = "/",
    ) -> int:
        """
        Start a daemon on the host that CRIU can dump.

        It leads a session of its own, is a child of the host's PID 1, reads from the host's /dev/null and writes to
        `log` on the host.

        Returns:
            Its PID as the host sees it.
        """
        inner = ["/bin/sh", "-c", _SPAWN, "spawn", log, directory, *argv]
        done = commands.run(self._entered(_ENTER, inner), env=_environment(env), check=False)
        if done.returncode != 0 or not done.stdout.strip().isdigit():
            raise commands.failure(argv, done.returncode, done.stderr)
        return int(done.stdout)

    def stat(self, pid: int) -> procfs.ProcessStat | None:
        """What the host's kernel tells of a process of the host, None when there is none with this PID."""
        try:
            return procfs.parse_stat((self.root / f"proc/{pid}/stat").read_text(errors="surrogateescape"))
        except (FileNotFoundError, ProcessLookupError):
            return None

    def running(self, pid: int) -> bool:
        """Whether a process of the host (by the host's PID) has not ended."""
        stat = self.stat(pid)
        return stat is not None and not stat.is_dead

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process of the host, by the host's PID; one that is gone is no error."""
        try:
            # A directory of /proc does as a pidfd (pidfd_send_signal(2)), also one of another PID namespace's /proc.
            descriptor = os.open(self.root / f"proc/{pid}", os.O_DIRECTORY | os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)

    def wait_ended(self, pid: int, timeout_seconds: float = commands.DEFAULT_TIMEOUT_SECONDS) -> None:
        """Wait until a process of the host is gone, and reaped."""
        deadline = time.monotonic() + timeout_seconds
        while self.stat(pid) is not None:
            if time.monotonic() > deadline:
                raise LabError(f"Process {pid} of host {self.name} did not end within {timeout_seconds:g} s.")
            time.sleep(POLL_SECONDS)

    @property
    def agent_pid(self) -> int | None:
        """The agent's PID as the host sees it, None when the lab's agent does not run."""
        record = ProcessRecord.read(self._agent_record)
        if record is None or not self.alive:
            return None
        stat = self.stat(record.pid)
        same = stat is not None and not stat.is_dead and stat.start_ticks == record.start_ticks
        return record.pid if same else None

    def launch_agent(self, extra_args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        """Start the host's agent; `wait_agent` tells when it serves."""
        if self.agent_pid is not None:
            raise LabError(f"The agent of host {self.name} is running already.")
        # A socket that a killed agent left would look like one that only does not answer yet.
        self.path(AGENT_SOCKET).unlink(missing_ok=True)
        pid = self.spawn([*AGENT_COMMAND, *extra_args], log=AGENT_LOG, env=env)
        try:
            self._agent_record.write_text(self.path(f"/proc/{pid}/stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            self._agent_record.unlink(missing_ok=True)  # it has ended already: `wait_agent` tells why

    def wait_agent(self, timeout_seconds: float = AGENT_DEADLINE_SECONDS) -> None:
        """Wait until the agent's socket takes a connection."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(str(self.path(AGENT_SOCKET)))
                    return
                except OSError:
                    pass  # not there yet, or not listening yet
            ended = self.agent_pid is None
            if ended or time.monotonic() > deadline:
                what = "ended while it was starting" if ended else f"does not serve after {timeout_seconds:g} s"
                raise LabError(
                    f"The agent of host {self.name} {what}.",
                    hint=f"Its log is {AGENT_LOG} on the host.",
                    detail=commands.tail(self.path(AGENT_LOG)),
                )
            time.sleep(POLL_SECONDS)

    def start_agent(self, extra_args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        """Start the host's agent and wait until it serves."""
        self.launch_agent(extra_args, env)
        self.wait_agent()

    def stop_agent(self, timeout_seconds: float = AGENT_DEADLINE_SECONDS) -> None:
        """Ask the agent to end and wait until it has; does nothing when it does not run."""
        self.kill_agent(signal.SIGTERM, timeout_seconds)

    def kill_agent(
        self, number: signal.Signals = signal.SIGKILL, timeout_seconds: float = AGENT_DEADLINE_SECONDS
    ) -> None:
        """End the agent by a signal and wait until it is reaped; does nothing when it does not run."""
        pid = self.agent_pid
        if pid is not None:
            self.kill(pid, number)
            self.wait_ended(pid, timeout_seconds)

    @property
    def _agent_record(self) -> Path:
        return self._directory / f"{self.name}.agent"

    def _entered(self, script: str, argv: Sequence[str]) -> list[str]:
        pid = self.pid
        enter = [commands.find("nsenter"), "--target", str(pid), *_NAMESPACES, "--"]
        return ["/bin/sh", "-ec", script, "enter", *cgroups.procs_files_beside(pid), "--", *enter, *argv]


def recorded(record: Path, group: Path | None, argv: Sequence[str]) -> list[str]:
    """The command line that first writes down its process, and joins a group, and then becomes `argv`."""
    procs = str(group / "cgroup.procs") if group else ""
    return ["/bin/sh", "-c", records.RECORDED_LAUNCH, "launch", str(record), procs, *argv]


def _as_foreground(argv: Sequence[str]) -> list[str]:
    """A command that ends when the nsenter before it is killed, and that Ctrl-C ends."""
    return ["setpriv", "--pdeathsig", "TERM", "env", "--chdir=/root", "--default-signal=INT,QUIT", *argv]


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    return {"PATH": HOST_PATH, "HOME": "/root", "LANG": "C.UTF-8", **(added or {})}
