"""Whether an agent may speak to others without encryption: on loopback always, elsewhere only when told `--insecure`.

Called by `agent.server` (where it listens) and `agent.wiring` (where it connects). Mutual TLS will take its place.
"""

from __future__ import annotations

import ipaddress
import socket

from phaul.errors import NotTrustedError, UsageError


def is_loopback(host: str) -> bool:
    """Whether every address of `host` is a loopback one. Raises `UsageError` for a name that has none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"the host name {host!r} has no address: {error.strerror}") from error
    return all(ipaddress.ip_address(str(entry[4][0]).split("%")[0]).is_loopback for entry in found)


def require_loopback_or_insecure(host: str, insecure: bool, act: str) -> None:
    """Raise `NotTrustedError` where `host` is off loopback and nobody allowed that."""
    if not insecure and not is_loopback(host):
        raise NotTrustedError(
            f"this agent may not {act} {host}: nothing would be encrypted and nobody authenticated",
            hint="On a network that you trust, start the agents of both hosts with --insecure (PHAUL_INSECURE=1).",
        )
