"""Sockets of a network namespace by inode: TCP and UDP from ``/proc/PID/net``, Unix sockets and peers from sock_diag.

Called by `workloads`. Reads only: it never connects, and changes no socket.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phaul.errors import DefectError

# include/net/tcp_states.h; UDP uses 1 for connected and 7 for not.
TCP_STATES = {
    1: "established",
    2: "syn_sent",
    3: "syn_recv",
    4: "fin_wait1",
    5: "fin_wait2",
    6: "time_wait",
    7: "close",
    8: "close_wait",
    9: "last_ack",
    10: "listen",
    11: "closing",
    12: "new_syn_recv",
}

# Others of nobody's are closed ones that the kernel sees to the end of, as in TIME_WAIT.
UNACCEPTED_STATES = ("established", "syn_recv", "close_wait")

NETLINK_SOCK_DIAG = 4  # linux/netlink.h
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
UDIAG_SHOW_NAME, UDIAG_SHOW_PEER, UDIAG_SHOW_RQLEN = 0x1, 0x4, 0x10  # linux/unix_diag.h
UNIX_DIAG_NAME, UNIX_DIAG_PEER, UNIX_DIAG_RQLEN = 0, 2, 4
ALL_STATES = 0xFFFF_FFFF
_SHOWN = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN
RECEIVE_BYTES = 1 << 18  # more than the kernel ever puts into one dump message (32 KiB)


@dataclass(frozen=True, slots=True)
class InternetSocket:
    """A TCP or UDP socket. IPv4-mapped IPv6 addresses are given as IPv4; port 0 where there is none."""

    protocol: str  # "tcp" or "udp"
    state: str
    local_address: str
    local_port: int
    remote_address: str
    remote_port: int
    waiting: int  # bytes to be read; of a listening TCP socket: connections not yet accepted
    inode: int
    sending: int = 0  # bytes that wait to be sent or acknowledged


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A Unix socket. `peer_inode` is 0 where it is not connected or the peer is closed or not yet accepted."""

    inode: int
    listening: bool
    name: str  # a path, "@" and the rest for an abstract one, "" for none
    peer_inode: int
    waiting: int = 0  # bytes to be read; of a listening one: connections not yet accepted


def parse_address(text: str) -> tuple[str, int]:
    """Read ``0100007F:0050``: 32-bit words in the byte order of this machine (net/ipv4/tcp_ipv4.c), the port in hex."""
    words, _, port = text.partition(":")
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return str(address.ipv4_mapped), int(port, 16)
    return str(address), int(port, 16)


def parse_table(
    text: str, protocol: str, *, unaccepted: bool = False, orphans: bool = False
) -> tuple[InternetSocket, ...]:
    """Read ``tcp``, ``tcp6``, ``udp`` or ``udp6`` of ``/proc/PID/net``.

    Entries without an inode belong to nobody; with `unaccepted` the connections among them are given, and no others;
    with `orphans` they are given as well.
    """
    found: list[InternetSocket] = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        inode = int(fields[9])
        state = TCP_STATES.get(int(fields[3], 16), "unknown")
        # Not to be read on: a busy server has tens of thousands of nobody's in TIME_WAIT.
        if (state not in UNACCEPTED_STATES or inode) if unaccepted else not (inode or orphans):
            continue
        local_address, local_port = parse_address(fields[1])
        remote_address, remote_port = parse_address(fields[2])
        found.append(
            InternetSocket(
                protocol=protocol,
                state=state,
                local_address=local_address,
                local_port=local_port,
                remote_address=remote_address,
                remote_port=remote_port,
                # rx_queue of a listening TCP socket is sk_ack_backlog (net/ipv4/tcp_ipv4.c, get_tcp4_sock).
                waiting=int(fields[4].partition(":")[2], 16),
                inode=inode,
                sending=int(fields[4].partition(":")[0], 16),
            )
        )
    return tuple(found)


def internet_sockets(pid: int) -> dict[int, InternetSocket]:
    """Give every TCP and UDP socket of the network namespace of a process, by inode."""
    found: dict[int, InternetSocket] = {}
    for text in _tcp_tables(pid):
        found.update((each.inode, each) for each in parse_table(text, "tcp"))
    for name in ("udp", "udp6", "udplite", "udplite6"):
        try:
            text = Path(f"/proc/{pid}/net/{name}").read_text()
        except FileNotFoundError:  # a kernel without IPv6 or UDP-Lite
            continue
        found.update((each.inode, each) for each in parse_table(text, "udp"))
    return found


def tcp_sockets(directory: Path) -> tuple[InternetSocket, ...]:
    """Give the TCP sockets that a directory like ``/proc/PID/net`` shows, those too that no process has any more.

    Such a one goes on to say its end until its peer has acknowledged it (tcp_close, net/ipv4/tcp.c).
    """
    found: list[InternetSocket] = []
    for name in ("tcp", "tcp6"):
        try:
            text = (directory / name).read_text()
        except FileNotFoundError:  # a kernel without IPv6
            continue
        found += parse_table(text, "tcp", orphans=True)
    return tuple(found)


def unaccepted_sockets(pid: int) -> tuple[InternetSocket, ...]:
    """Give the TCP connections of the network namespace of a process that only the kernel knows of.

    They wait to be accepted, or for the last packet that makes a connection (``syn_recv``).
    """
    return tuple(each for text in _tcp_tables(pid) for each in parse_table(text, "tcp", unaccepted=True))


def _tcp_tables(pid: int) -> Iterator[str]:
    """Give ``tcp`` and ``tcp6``; the latter only where there is anything in it.

    The kernel goes through all that it has room for, for either of them (net/ipv4/tcp_ipv4.c, established_get_first):
    some milliseconds, whether there are any connections or not.
    """
    net = Path(f"/proc/{pid}/net")
    yield (net / "tcp").read_text()
    try:
        if "TCP6: inuse 0\n" not in (net / "sockstat6").read_text():
            yield (net / "tcp6").read_text()
    except FileNotFoundError:  # a kernel without IPv6
        pass


def unix_request() -> bytes:
    """Build the request for every Unix socket of this network namespace: nlmsghdr and unix_diag_req."""
    body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, ALL_STATES, 0, _SHOWN, 0, 0)
    return struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body


def parse_unix_answer(data: bytes) -> tuple[tuple[UnixSocket, ...], bool]:
    """Read one datagram of the answer, and say whether it was the last. `DefectError` when the kernel refused."""
    found: list[UnixSocket] = []
    position = 0
    while position + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, position)
        if kind == NLMSG_DONE:
            return tuple(found), True
        if kind == NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", data, position + 16)
            raise DefectError(f"the kernel did not list the Unix sockets (error {-code})")
        if length < 32:
            break
        _, _, state, _, inode = struct.unpack_from("=BBBBI", data, position + 16)
        attributes = _attributes(data[position + 32 : position + length])
        name = attributes.get(UNIX_DIAG_NAME, b"")
        peer = attributes.get(UNIX_DIAG_PEER, b"")
        queues = attributes.get(UNIX_DIAG_RQLEN, b"")
        found.append(
            UnixSocket(
                inode=inode,
                listening=state == 10,
                name=_socket_name(name),
                peer_inode=struct.unpack("=I", peer)[0] if len(peer) == 4 else 0,
                waiting=struct.unpack_from("=I", queues)[0] if len(queues) >= 4 else 0,
            )
        )
        position += length + 3 & ~3
    return tuple(found), False


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, position)
        if length < 4:
            break
        found[kind] = data[position + 4 : position + length]
        position += length + 3 & ~3
    return found


def _socket_name(name: bytes) -> str:
    if name.startswith(b"\0"):
        return "@" + name[1:].decode(errors="replace")
    return name.rstrip(b"\0").decode(errors="surrogateescape")


def unix_sockets() -> dict[int, UnixSocket]:
    """Give every Unix socket of the network namespace that this thread is in, by inode.

    ``/proc/net/unix`` does not tell who is connected to whom; sock_diag does (net/unix/diag.c, Linux >= 3.3).
    """
    found: dict[int, UnixSocket] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as channel:
        channel.settimeout(10)
        channel.send(unix_request())
        last = False
        while not last:
            part, last = parse_unix_answer(channel.recv(RECEIVE_BYTES))
            found.update((each.inode, each) for each in part)
    return found


def parse_netlink(text: str) -> dict[int, int]:
    """Read ``/proc/PID/net/netlink``: by inode, how many bytes wait to be read."""
    rows = (line.split() for line in text.splitlines()[1:])
    return {int(fields[9]): int(fields[4]) for fields in rows}


def netlink_unread(pid: int) -> dict[int, int]:
    """Give what waits to be read from each netlink socket of the network namespace of a process, by inode."""
    return parse_netlink(Path(f"/proc/{pid}/net/netlink").read_text())


def parse_groups(text: str) -> tuple[tuple[str, str], ...]:
    """Read ``/proc/PID/net/igmp``: each multicast group of IPv4 with the device that has joined it."""
    found: list[tuple[str, str]] = []
    device = ""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if line[0].isdigit():
            device = fields[1].rstrip(":")
        else:
            found.append((parse_address(f"{fields[0]}:0")[0], device))
    return tuple(found)


def multicast_groups(pid: int) -> tuple[tuple[str, str], ...]:
    """Give the multicast groups of IPv4 that the network namespace of a process has joined, but that of all hosts."""
    groups = parse_groups(Path(f"/proc/{pid}/net/igmp").read_text())
    return tuple(each for each in groups if each[0] != "224.0.0.1")


def device_names() -> tuple[str, ...]:
    """Give the network devices of this host, sorted, for `HostFacts.devices`."""
    return tuple(sorted(name for _, name in socket.if_nameindex()))
