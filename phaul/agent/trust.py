"""Whether an agent speaks TLS with others, and where it may speak at all without.

With files of trust (`phaul trust`) it is TLS everywhere off the Unix socket. Without, or with `--insecure`, nothing is
encrypted: on loopback that is allowed, elsewhere only when told `--insecure`. Called by `agent.server` and
`agent.wiring`.
"""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

from phaul.config import AgentConfig
from phaul.errors import NotTrustedError, UsageError
from phaul.trust.store import TrustStore

TRUST_DIRECTORY = "trust"  # below the state directory


def trust_directory(config: AgentConfig) -> Path:
    """Where this host's files of trust are."""
    return config.state_dir / TRUST_DIRECTORY


def trusted_store(config: AgentConfig) -> TrustStore | None:
    """This host's files of trust; None where there are none, or they are not to be used."""
    store = TrustStore(trust_directory(config))
    return store if store.exists() and not config.insecure else None


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
            f"this agent may not {act} {host}: it has no certificate, so nothing would be encrypted and nobody "
            "authenticated",
            hint="`phaul trust init` on one host and `phaul trust issue HOST` for the others give certificates; then "
            "start the agent again. Only on a network that you trust wholly: --insecure (PHAUL_INSECURE=1) on both.",
        )
