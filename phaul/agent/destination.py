"""The destination of a migration as a person types it: HOST, HOST:PORT, [IPV6], [IPV6]:PORT or a bare IPv6 address.

`cli` checks with it before the agent is asked, the agent connects to what it gives. Only `avoiding` looks up a name.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass

from phaul.config import DEFAULT_PEER_PORT
from phaul.errors import UsageError

HIGHEST_PORT = 65535
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?", re.ASCII)
_HINT = "Write HOST, HOST:PORT or [IPV6]:PORT, for example --to b.example:7428 or --to [fd00::2]:7428."


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the other agent listens. `host` stands without brackets."""

    host: str
    port: int = DEFAULT_PEER_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_destination(text: str) -> Destination:
    """Read what was typed after --to; raises `UsageError` where it cannot be a host."""
    typed = text.strip()
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", typed, re.DOTALL)
    if bracketed:
        if not _is_ipv6(bracketed[1]):
            raise UsageError(f"there is no IPv6 address in the brackets of {text!r}", hint=_HINT)
        return Destination(bracketed[1], _port(bracketed[2], text))
    if _is_ipv6(typed):
        return Destination(typed)
    host, colon, port = typed.partition(":")
    if not _HOST_NAME.fullmatch(host):
        raise UsageError(f"{text!r} names no host", hint=_HINT)
    return Destination(host, _port(port if colon else None, text))


def own_address_towards(family: int, address: tuple[str, int]) -> str:
    """The address of this host that the kernel uses towards another; "" where there is no way. Sends nothing."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return ""
        return str(probe.getsockname()[0]).split("%")[0]


def avoiding(destination: Destination, moving: Collection[str]) -> Destination:
    """Choose, of the addresses of a name, one that is not reached from an address that moves away.

    A destination that has none, or cannot be resolved, is given as it is: preflight, or the connection, will say why.
    """
    try:
        found = socket.getaddrinfo(destination.host, destination.port, type=socket.SOCK_DGRAM)
    except OSError:
        return destination
    here = {ipaddress.ip_address(each) for each in moving}
    for family, _, _, _, address in found:
        host, port = str(address[0]), int(address[1])
        own = own_address_towards(family, (host, port))
        if own and ipaddress.ip_address(own) not in here:
            return destination if (family, address) == (found[0][0], found[0][4]) else Destination(host, port)
    return destination


def _port(typed: str | None, text: str) -> int:
    if typed is None:
        return DEFAULT_PEER_PORT
    if not re.fullmatch(r"[0-9]{1,5}", typed) or not 1 <= int(typed) <= HIGHEST_PORT:
        raise UsageError(f"the port of {text!r} is not a number from 1 to {HIGHEST_PORT}", hint=_HINT)
    return int(typed)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
