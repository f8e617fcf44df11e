"""What is written down of a lab under ``/run/phaul-lab``: its description, and the processes that hold it up.

Called by `phaul.lab.cluster`, `phaul.lab.host` and `phaul.lab.image`. A process is recorded by itself, before it makes
its first namespace, so that a lab whose maker was killed can still be taken down. Never signals a PID that has been
given to another process meanwhile: a record carries the start time.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from phaul.errors import LabError
from phaul.system import procfs

STATE_ROOT = Path("/run/phaul-lab")
DESCRIPTION_FILE = "lab.json"
DEATH_DEADLINE_SECONDS = 20.0  # a host that ran a process of many GiB takes seconds to be freed

# Run by /bin/sh with the record, the cgroup.procs file (or "") and the command. A directory that is gone means that the
# lab was taken down meanwhile: then nothing is started.
RECORDED_LAUNCH = 'set -e; read -r s </proc/$$/stat; echo "$s" >"$1"; [ -z "$2" ] || echo 0 >"$2"; shift 2; exec "$@"'


@dataclass(frozen=True, slots=True)
class HostDescription:
    """What a host is made from."""

    name: str
    ip4: str
    ip6: str
    mac: str
    first_pid: int


@dataclass(frozen=True, slots=True)
class MachineSize:
    """What each virtual machine of a lab has."""

    memory_mib: int = 2048
    processors: int = 1


USUAL_SIZE = MachineSize()


@dataclass(frozen=True, slots=True)
class LabDescription:
    """What a lab is made from; the only thing that is written as JSON."""

    name: str
    image: str  # directory of the image, kept as long as a lab uses it
    hosts: tuple[HostDescription, ...]  # the client is the last one
    machines: str = ""  # directory of what virtual machines start from; "" where the hosts are namespaces
    bare: bool = False  # virtual machines without anything of phaul
    size: MachineSize = USUAL_SIZE

    def write(self, directory: Path) -> None:
        """Write it whole: who reads never sees half of it."""
        draft = directory / f"{DESCRIPTION_FILE}.new"
        draft.write_text(json.dumps(asdict(self), indent=2) + "\n")
        draft.replace(directory / DESCRIPTION_FILE)

    @classmethod
    def read(cls, directory: Path) -> LabDescription:
        """Read it back; `OSError` or `ValueError` when it is not there or not whole."""
        data = json.loads((directory / DESCRIPTION_FILE).read_text())
        try:
            hosts = tuple(HostDescription(**host) for host in data["hosts"])
            size = MachineSize(**data.get("size", {}))
            return cls(data["name"], data["image"], hosts, data.get("machines", ""), data.get("bare", False), size)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{directory / DESCRIPTION_FILE} is not the description of a lab") from error


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process as it was recorded, to be told from a later one with its PID."""

    pid: int
    start_ticks: int

    @classmethod
    def read(cls, file: Path) -> ProcessRecord | None:
        """The process that recorded itself in `file`, None when it has not."""
        try:
            stat = procfs.parse_stat(file.read_text())
        except (OSError, ValueError, IndexError):
            return None
        return cls(pid=stat.pid, start_ticks=stat.start_ticks)

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs."""
        try:
            stat = procfs.read_stat(self.pid)
        except OSError:
            return False
        return stat.start_ticks == self.start_ticks and not stat.is_dead

    def end(self) -> None:
        """
        Kill the only child, a host's PID 1, and then the process itself; wait until both have ended.

        In this order the kernel first ends and frees every process of the host, and the parent reaps PID 1: the
        machine's own init, which not everywhere reaps, gets nothing to do. One that has ended already is no error.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if not self.alive:  # looked at while the pidfd holds the number
                return
            child = child_of(self.pid)
            if child is None:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            else:
                os.kill(child, signal.SIGKILL)  # its number is taken until the parent, which lives, has reaped it
            ended, _, _ = select.select([descriptor], [], [], DEATH_DEADLINE_SECONDS)
            if not ended:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                raise LabError(f"Process {self.pid} of the lab did not die within {DEATH_DEADLINE_SECONDS:g} s.")
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)


def child_of(pid: int) -> int | None:
    """The PID of a process's only child, None when it has none (yet)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def images_in_use() -> Iterator[Path]:
    """The images of the labs that are up, or were not taken down."""
    for directory in STATE_ROOT.glob("*/"):
        try:
            description = LabDescription.read(directory)
        except (OSError, ValueError):
            continue
        yield from (Path(path) for path in (description.image, description.machines) if path)
