"""What the two hosts say of themselves and of the workload: plain values, gathered elsewhere, compared in `preflight`.

`workloads.process` and `agent` fill them, `agent.messages` carries them over gRPC field by field (the field names are
those of `proto/phaul/v1/facts.proto`), and nothing here touches a system.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

DIRECTORY = "directory:/"  # begins a destination that is no host; from the slash on it is an absolute path


class FileUse(StrEnum):
    """How a workload holds a path."""

    EXECUTABLE = "executable"
    MAPPED = "mapped"
    OPEN = "open"
    WORKING_DIRECTORY = "working_directory"
    ROOT_DIRECTORY = "root_directory"
    SOCKET_DIRECTORY = "socket_directory"  # a Unix socket is bound in it: CRIU binds it again, the mode does not matter
    WATCHED = "watched"  # by inotify or fanotify: it has to be there, whatever is in it


class Severity(StrEnum):
    """Whether a problem stops the migration."""

    REFUSES = "refuses"
    WARNS = "warns"


class Mode(StrEnum):
    """How the memory goes."""

    AUTO = "auto"  # as both hosts can
    PRE_COPY = "pre-copy"  # in rounds while the workload runs, and the rest of it in the freeze
    STOP_AND_COPY = "stop-and-copy"  # all of it in the freeze


class OnStall(StrEnum):
    """What to do when further rounds do not bring the downtime below what is acceptable."""

    REFUSE = "refuse"
    FREEZE = "freeze"
    THROTTLE = "throttle"
    POSTCOPY = "postcopy"


class Compression(StrEnum):
    """Whether the memory is compressed on its way."""

    AUTO = "auto"  # where it is measured to help
    ZSTD = "zstd"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why this workload cannot go (or will go with a loss), and what to do about it.

    `code` is stable and lower_snake_case (tests and `--json` use it), `message` is one sentence, `hint` is advice.
    """

    code: str
    message: str
    hint: str
    severity: Severity = Severity.REFUSES


@dataclass(frozen=True, slots=True)
class HookFacts:
    """An action script that would be run on one host. `problem` is a clause on why it must not be; "" where it may.

    `stage` is "" for one that is run at every stage (`--hook`).
    """

    stage: str
    path: str
    problem: str = ""
    timeout_seconds: float = 0


@dataclass(frozen=True, slots=True)
class HookRun:
    """An action script that has ended. `problem` is a clause on how it failed; "" where it did not.

    `exit_status` is minus the signal's number for one that was ended by a signal; `output` its last lines.
    """

    stage: str
    path: str
    exit_status: int
    duration_us: int
    output: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """One process of the tree. IDs are those of the PID namespace the source agent lives in."""

    pid: int
    parent_pid: int
    command: str
    thread_ids: tuple[int, ...]  # every thread, the leader's included; ascending
    user_id: int
    start_ticks: int  # /proc/PID/stat field 22: with the PID, the identity of the process


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A path that a workload holds, as it looks on one host.

    `size_bytes` and `mode` (permission and type bits, st_mode) are what CRIU compares at restore; `build_id` is the
    hex GNU build ID of an ELF file; of another file that is mapped "content " and a hash; else empty. `exists` is False
    on a host that has no such path. A deleted file that is still held is not listed: CRIU carries it in its images (a
    ghost file).
    """

    path: str
    use: FileUse
    exists: bool = True
    size_bytes: int = 0
    mode: int = 0
    build_id: str = ""
    writable: bool = False  # held open for writing: its size may differ by the time of the freeze
    append_only: bool = False  # held by O_WRONLY|O_APPEND alone (a log): CRIU does not compare its size
    locked: bool = False  # here: the workload holds a lock on it; there: somebody else's lock would be in the way


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """A TCP or UDP socket of the workload. Addresses without scope or brackets; port 0 where there is none."""

    protocol: str  # "tcp" or "udp"
    state: str  # the kernel's name in lower case: "established", "listen", "close_wait", ...
    local_address: str
    local_port: int
    remote_address: str
    remote_port: int
    unaccepted: int = 0  # of a listening socket: connections complete but not yet accepted


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """A device of a workload's own network namespace by which it is connected.

    `outer` is what stands for it on the host: the other end of a veth pair, or the device that a macvlan or an ipvlan
    stands on.
    """

    name: str  # in the namespace
    kind: str  # "veth", "macvlan" or "ipvlan"
    mac: str
    outer: str
    bridge: str = ""  # of which the outer end of a veth pair is a port
    mtu: int = 0  # of the outer end of a veth pair, or of an ipvlan itself
    addresses: tuple[str, ...] = ()  # global ones, IP/PREFIX
    outer_index: int = 0  # the kernel's number for `outer`
    index: int = 0  # and for itself, in its namespace
    mode: str = ""  # of an ipvlan, with its flag: "l2 bridge"
    link_local: tuple[str, ...] = ()  # of an ipvlan, those that somebody has chosen, IP/PREFIX
    gateways: tuple[str, ...] = ()  # that routes over it go by, and that have to be reached over it
    on_link: tuple[str, ...] = ()  # networks that routes lead to over it without one; but for those of its addresses


@dataclass(frozen=True, slots=True)
class SettingFacts:
    """A sysctl of a network namespace, by its path below /proc/sys."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """A network namespace that a workload has for itself, as far as CRIU does not carry it."""

    links: tuple[LinkFacts, ...] = ()
    names: tuple[str, ...] = ()  # below /run/netns, as `ip netns` gives them
    settings: tuple[SettingFacts, ...] = ()
    problems: tuple[Problem, ...] = ()  # that can be seen on the source alone
    inode: int = 0  # of the namespace


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """Everything of a process tree that decides whether and how it can go.

    `memory_bytes` is what will have to travel: the private and shared memory that is not a clean file mapping
    (resident and swapped). `problems` are those that can be seen on the source alone.
    """

    root_pid: int
    tasks: tuple[TaskFacts, ...]  # the root task first, parents before children
    memory_bytes: int
    files: tuple[FileFacts, ...]
    connections: tuple[ConnectionFacts, ...]
    problems: tuple[Problem, ...] = ()
    needs_shell_job: bool = False  # the root task does not lead its session, so CRIU wants `shell_job`
    has_own_network: bool = False  # lives in another network namespace than the agent
    helper_ids: tuple[int, ...] = ()  # of sessions and groups whose leader is gone: CRIU takes them for a moment
    capabilities: int = 0  # the permitted capabilities of all tasks together, as a mask
    most_mappings: int = 0  # of one task
    most_open_files: int = 0  # the highest hard limit of open files of a task
    huge_page_bytes: int = 0
    terminals: tuple[int, ...] = ()  # numbers below /dev/pts of which the tree has the controlling end
    unix_names: tuple[str, ...] = ()  # of its Unix sockets that are bound; "@" stands for an abstract one
    bound_devices: tuple[str, ...] = ()  # network devices that a socket is bound to
    security_label: str = ""  # the LSM's profile or context of the root task; "" where there is none to speak of
    network: NetworkFacts | None = None  # where it has one of its own
    addresses_of_others: tuple[str, ...] = ()  # that sockets outside of the tree use, in the same network namespace
    has_own_host_name: bool = False  # lives in another UTS namespace than the agent


@dataclass(frozen=True, slots=True)
class AddressFacts:
    """An IP address on a device of a host, as `ip address` would show it (scope link left out, no host part cut)."""

    address: str
    prefix_length: int
    device: str

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix_length}@{self.device}"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host is and can do."""

    host_name: str = ""
    phaul_version: str = ""
    kernel_release: str = ""
    architecture: str = ""
    page_size_bytes: int = 0
    criu_version: str = ""  # "" where there is no CRIU that runs
    criu_path: str = ""
    features: tuple[str, ...] = ()  # sorted names, e.g. "mem_track", "lazy_pages", "nftables", "huge_tmpfs"
    memory_available_bytes: int = 0
    addresses: tuple[AddressFacts, ...] = ()
    problems: tuple[Problem, ...] = ()  # what keeps this host from taking part at all
    devices: tuple[str, ...] = ()  # names of the network devices; empty where not asked
    cpu_features: tuple[str, ...] = ()  # what programs may use of the processors; empty where not known
    capabilities: int = 0  # what the agent may give to a task, as a mask; 0 where not known
    max_mappings: int = 0  # vm.max_map_count; this and what follows is 0 where not known
    max_open_files: int = 0  # fs.nr_open
    max_pid: int = 0  # kernel.pid_max: numbers below it can be given
    free_huge_page_bytes: int = 0
    security_modules: tuple[str, ...] = ()  # that label processes: "apparmor", "selinux"
    most_memory_bytes: int = 0  # of a workload, by its policy; 0: no limit
    bridges: tuple[str, ...] = ()  # those of `devices` that are
    macs: tuple[str, ...] = ()  # of all devices
    network_names: tuple[str, ...] = ()  # of network namespaces, below /run/netns
    device_numbers: tuple[int, ...] = ()  # the kernel's, of all devices
    device_mtus: tuple[int, ...] = ()  # in the order of `devices`


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What is in use on a host that a workload may want as well. No socket of a single connection is listed."""

    sockets: tuple[ConnectionFacts, ...] = ()  # TCP that listens and UDP that is bound
    unix_names: tuple[str, ...] = ()
    terminals: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """Somebody on the network says that it has an address."""

    address: str
    mac: str


@dataclass(frozen=True, slots=True)
class DestinationFacts:
    """What the destination sees when it is told which IDs and paths a workload needs."""

    host: HostFacts
    files: tuple[FileFacts, ...] = ()  # one for each path asked, in the order asked
    taken_ids: tuple[int, ...] = ()  # of the PIDs and thread IDs asked for, those in use here
    local_addresses: tuple[str, ...] = ()  # every address that is local here, loopback and link scope included
    occupied: Occupancy = field(default_factory=Occupancy)
    hooks: tuple[HookFacts, ...] = ()
    claims: tuple[ClaimFacts, ...] = ()  # of the addresses that may move, as the network answers here
    heard_macs: tuple[str, ...] = ()  # of the MACs asked for, those that the network has been heard with


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """An address that shall move with the workload. `device` is "" where the source decides: the one it stands on."""

    address: str
    prefix_length: int
    device: str = ""


@dataclass(frozen=True, slots=True)
class NewAddress:
    """An address that the workload has, or that its sockets are bound to, and the one that comes in place of it."""

    old: str
    new: str
    prefix_length: int = 0  # of `new`, in a network of the workload's own; 0 for that of `old`


@dataclass(frozen=True, slots=True)
class NewMac:
    """Another MAC for a device of the workload's own network namespace. `device` is "" where it has but one."""

    device: str
    mac: str


@dataclass(frozen=True, slots=True)
class MigrationRequest:
    """What the person asked for."""

    root_pid: int
    destination: str  # HOST or HOST:PORT as typed; or begins with `DIRECTORY`: a dump
    addresses: tuple[AddressRequest, ...] = ()
    drop_unaccepted: bool = False  # connections that wait in a listen queue may be lost (CRIU tcp_skip_in_flight)
    timeout_seconds: float = 0  # for everything up to COMMIT; 0: no limit
    freeze_timeout_seconds: float = 0  # for the tasks to stand still on the source; 0: no limit
    bandwidth_bytes_per_second: int = 0  # cap on what the migration sends; 0: not said
    compress: Compression = Compression.AUTO
    mode: Mode = Mode.AUTO
    max_downtime_seconds: float = 0  # the pause that is acceptable; 0: not said
    max_rounds: int = 0  # of pre-copy; 0: not said
    on_stall: OnStall = OnStall.REFUSE
    auto_addresses: bool = False  # move also those that the workload uses and nobody else does
    hooks: tuple[str, ...] = ()  # paths of action scripts, there on both hosts, that are run at every stage
    new_addresses: tuple[NewAddress, ...] = ()  # with any, TCP connections are closed
    new_macs: tuple[NewMac, ...] = ()
    host_name: str = ""  # that the copy's own UTS namespace gets; "" leaves it as it is
    new_gateways: tuple[NewAddress, ...] = ()  # of routes in a network namespace of its own
    leave_running: bool = False  # of a dump: the workload goes on

    @property
    def drops_unaccepted(self) -> bool:
        """Whether connections that wait in a listen queue may be lost: also where all of them are closed."""
        return self.drop_unaccepted or self.closes_connections

    @property
    def at_rest(self) -> bool:
        """Whether the images stay in a directory, and nothing runs from them for now."""
        return self.destination.startswith(DIRECTORY)

    @property
    def closes_connections(self) -> bool:
        """Whether the copy has no TCP connections."""
        return self.at_rest or bool(self.new_addresses)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The answer of preflight: nothing was touched; with no refusing problem the workload may go."""

    source: HostFacts
    destination: HostFacts
    workload: WorkloadFacts
    problems: tuple[Problem, ...] = field(default=())
    fine: tuple[str, ...] = ()  # what was looked at and is no problem, a few words each
    expected_downtime_us: int = 0  # a rough guess from memory and count of tasks; 0 where refused
    addresses: tuple[AddressRequest, ...] = ()  # that would move
    source_hooks: tuple[HookFacts, ...] = ()  # in the order in which they would be run, those of `--hook` last
    destination_hooks: tuple[HookFacts, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether at least one problem stops the migration."""
        return any(problem.severity is Severity.REFUSES for problem in self.problems)
