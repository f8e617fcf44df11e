"""A whole lab: hosts, client and bridge under one name, brought up together and taken down without a trace.

Called by tests, benchmarks, the demo and `phaul.cli.lab`. What a lab consists of can be found again from its directory
under /run/phaul-lab, whoever made it and however that ended. Never touches a lab of another name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from phaul.errors import LabError, UsageError
from phaul.lab import building, cgroups, commands, image, machine, network, trust, vm_code, vm_image
from phaul.lab.host import HOST_PATH, SHARED_NAME, Host, recorded
from phaul.lab.namespace_host import NamespaceHost
from phaul.lab.records import STATE_ROOT, USUAL_SIZE, HostDescription, LabDescription, MachineSize, ProcessRecord
from phaul.lab.vm_host import VirtualHost
from phaul.lab.vm_image import VmImage

DEFAULT_NAME = "lab"
CLIENT = "client"
START_DEADLINE_SECONDS = 20.0  # a third of a second is usual
SWITCH = "switch"
_LAB_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_HOST_NAME = re.compile(
    r"[a-z][a-z0-9-]{0,12}"
)  # the kernel's limit for the name of a link is 15; see network.management_tap
_DOOMED_SUFFIX = ".down"


class Lab:
    """A lab that is up.

    Invariant: every process of the lab is recorded in `directory` or descends from one that is. Owns the processes it
    has started itself, until `down`; an object of `Lab.open` owns nothing.
    """

    def __init__(self, description: LabDescription) -> None:
        self.description = description
        self.name = description.name
        self.directory = STATE_ROOT / description.name
        self.client = NamespaceHost(description.hosts[-1], self.directory)
        self.hosts: dict[str, Host] = {host.name: self._host(host) for host in description.hosts[:-1]}
        self._children: list[subprocess.Popen[bytes]] = []

    @classmethod
    def up(
        cls,
        name: str = DEFAULT_NAME,
        hosts: Sequence[str] = ("a", "b"),
        *,
        virtual: bool = False,
        bare: bool = False,
        size: MachineSize = USUAL_SIZE,
        agents: bool = True,
        image_directory: Path | None = None,
        progress: building.Progress = lambda line: None,
    ) -> Lab:
        """
        Bring a lab up.

        Args:
            name: tells labs of one machine apart.
            hosts: names of the hosts; the client is there always.
            virtual: the hosts are virtual machines; the client is none.
            bare: and have nothing of phaul, no CRIU, and no agents: a Debian with an SSH server.
            size: of each virtual machine.
            image_directory: another image than the usual one.
            agents: start an agent on each host and wait until it serves.
            progress: told one line per step that takes long.

        Nothing is left of a lab that fails to come up.
        """
        _check_names(name, hosts)
        machine.check(virtual=virtual, size=size)
        chosen_image = image_directory or image.ensure(progress)
        machines = str(vm_image.ensure(progress).directory) if virtual else ""
        description = LabDescription(name, str(chosen_image), network.describe(hosts, CLIENT), machines, bare, size)
        directory = _make_directory(name)
        lab = cls(description)
        try:
            description.write(directory)
            lab._start(chosen_image, progress)
            if agents and not bare:
                lab.start_agents()
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def open(cls, name: str = DEFAULT_NAME) -> Lab:
        """The lab of that name that somebody has brought up."""
        try:
            return cls(LabDescription.read(STATE_ROOT / name))
        except FileNotFoundError as error:
            if name in names():
                hint = _option("`phaul lab down` removes it.", name)
                raise LabError(f"The lab {name!r} is only half there.", hint=hint) from error
            raise LabError(f"There is no lab {name!r}.", hint=_option("`phaul lab up` starts one.", name)) from error
        except (OSError, ValueError) as error:
            hint = _option("`phaul lab down` removes it.", name)
            raise LabError(f"The lab {name!r} is only half there.", hint=hint) from error

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def host(self, name: str) -> Host:
        """The host (or the client) of that name."""
        members = {**self.hosts, CLIENT: self.client}
        if name not in members:
            raise UsageError(f"The lab has no host {name!r}.", hint=f"It has {', '.join(members)}.")
        return members[name]

    @property
    def members(self) -> tuple[Host, ...]:
        """The hosts and the client."""
        return (*self.hosts.values(), self.client)

    @property
    def shared(self) -> Path:
        """The directory that every host has as /srv/shared, as the machine can open it."""
        return self.directory / SHARED_NAME

    def start_agents(self) -> None:
        """Start the agents of all hosts at once and wait until they serve."""
        for host in self.hosts.values():
            host.launch_agent()
        for host in self.hosts.values():
            host.wait_agent()

    def down(self) -> None:
        """Take the lab down; nothing happens when it is down already."""
        for host in self.machines:
            host.disconnect()
        down(self.name)
        for child in self._children:
            child.wait()
        self._children.clear()

    @property
    def machines(self) -> tuple[VirtualHost, ...]:
        """Those hosts that are virtual machines: all, or none."""
        return tuple(host for host in self.hosts.values() if isinstance(host, VirtualHost))

    def install(self) -> None:
        """Give the virtual machines phaul's code as it is now; their agents do not notice before they start again."""
        archive = vm_code.archive(Path(self.description.image))
        for host in self.machines:
            host.install(archive)

    def _host(self, description: HostDescription) -> Host:
        if not self.description.machines:
            return NamespaceHost(description, self.directory)
        machines = VmImage(Path(self.description.machines))
        switch = self.directory / f"{SWITCH}.process"
        return VirtualHost(description, self.directory, machines, switch, self.description)

    def _start(self, chosen_image: Path, progress: building.Progress) -> None:
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        hosts_file = network.hosts_file(self.description.hosts)
        self.shared.mkdir(mode=0o755)
        started = []
        namespaces = [host for host in self.members if isinstance(host, NamespaceHost)]
        for host in namespaces:
            process = host.launch(chosen_image, hosts_file, cgroups.create(self.name, host.name))
            self._children.append(process)
            started.append((process, host.log, f"Host {host.name}"))
        switch_log = self.directory / f"{SWITCH}.log"
        switch = self._launch_switch(switch_log)
        for process, log, what in (*started, (switch, switch_log, "The lab's switch")):
            commands.wait_ready(process, log, what, deadline)
        # The process that waits for PID 1 is in the host's network namespace too.
        network.connect(switch.pid, [(host.description, host.pid) for host in namespaces])
        if self.machines:
            self._start_machines(switch.pid, progress)
        if not self.description.bare:
            trust.give(tuple(self.hosts.values()), self.directory)

    def _start_machines(self, switch_pid: int, progress: building.Progress) -> None:
        network.connect_machines(switch_pid, [host.description for host in self.machines])
        if not all(host.remembered(self.description.hosts) for host in self.machines):
            progress("Booting the virtual machines for the first time")
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        for host in self.machines:
            process = host.launch(self.description.hosts, cgroups.create(self.name, host.name))
            self._children.append(process)
            commands.wait_ready(process, host.log, f"QEMU of host {host.name}", deadline)
        for host in self.machines:
            host.wait_up(self.description.hosts)
        if not self.description.bare:
            self.install()

    def _launch_switch(self, log: Path) -> subprocess.Popen[bytes]:
        """Start the process that keeps the bridge's network namespace."""
        keep = ["/bin/sh", "-c", "echo ready; exec sleep infinity </dev/null >/dev/null 2>&1"]
        argv = [commands.find("unshare"), "--net", "--", *keep]
        group = cgroups.create(self.name, SWITCH)
        record = self.directory / f"{SWITCH}.process"
        process = commands.start_detached(recorded(record, group, argv), log, env={"PATH": HOST_PATH})
        self._children.append(process)
        return process


def prepare_machines(progress: building.Progress = lambda line: None) -> None:
    """Make what virtual machines start from, and start them once, so that from then on they need not boot."""
    for bare in (False, True):
        with Lab.up(f"build-{os.getpid()}", virtual=True, bare=bare, agents=False, progress=progress) as lab:
            directory = lab.description.machines
    progress(f"The virtual machines start from {directory}")


def down(name: str = DEFAULT_NAME) -> bool:
    """
    Take a lab down, whole or half, whoever made it.

    Returns:
        Whether there was anything of it.
    """
    _check_names(name, ())
    if not STATE_ROOT.is_dir():
        return False
    directory = STATE_ROOT / name
    doomed = directory.with_name(name + _DOOMED_SUFFIX)
    found = directory.exists() or doomed.exists()
    if directory.exists() and not doomed.exists():
        # From here on no process can record itself any more: one that tries ends instead.
        directory.rename(doomed)
    for remains in (doomed, directory):
        for file in remains.glob("*.process"):
            record = ProcessRecord.read(file)
            if record:
                record.end()
        if remains.exists():
            shutil.rmtree(remains)
    cgroups.remove(name)
    try:
        STATE_ROOT.rmdir()
    except OSError:
        pass  # other labs are there
    return found


def names() -> list[str]:
    """The labs of this machine, also half ones."""
    if not STATE_ROOT.is_dir():
        return []
    return sorted({entry.name.removesuffix(_DOOMED_SUFFIX) for entry in STATE_ROOT.iterdir() if entry.is_dir()})


def _make_directory(name: str) -> Path:
    directory = STATE_ROOT / name
    hint = _option("`phaul lab down` takes it down.", name)
    if directory.with_name(name + _DOOMED_SUFFIX).exists():
        raise LabError(f"The lab {name!r} was not taken down wholly.", hint=hint)
    while True:
        STATE_ROOT.mkdir(mode=0o755, exist_ok=True)
        try:
            directory.mkdir(mode=0o700)
            return directory
        except FileNotFoundError:
            continue  # another lab's end has removed the directory above meanwhile
        except FileExistsError as error:
            raise LabError(f"The lab {name!r} is up already.", hint=hint) from error


def _check_names(name: str, hosts: Sequence[str]) -> None:
    if not _LAB_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a lab.", hint="Lower-case letters, digits and dashes, at most 32.")
    last_host = network.CLIENT - network.FIRST_HOST
    if len(hosts) > last_host:
        raise UsageError(f"A lab has at most {last_host} hosts.")
    for host in hosts:
        if not _HOST_NAME.fullmatch(host) or host in (CLIENT, SWITCH, SHARED_NAME) or list(hosts).count(host) > 1:
            raise UsageError(
                f"{host!r} is no name for a host of a lab.", hint="Lower-case letters and digits, each once."
            )


def _option(hint: str, name: str) -> str:
    """The hint with the option that names a lab other than the usual one."""
    if name == DEFAULT_NAME:
        return hint
    command, _, rest = hint.rpartition("`")
    return f"{command} --name {name}`{rest}"
