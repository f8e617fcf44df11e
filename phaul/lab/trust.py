"""Certificates for the hosts of a lab: host a is the authority, so that every lab runs as two hosts in earnest would.

Called by `phaul.lab.cluster` before the agents start.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from phaul.config import DEFAULT_PEER_PORT
from phaul.lab.host import Host
from phaul.trust.authority import Authority
from phaul.trust.store import HOST_FILE, LIST_FILE, TrustStore

DIRECTORY = "/var/lib/phaul/trust"


def give(hosts: Sequence[Host], scratch: Path) -> None:
    """Make the first host the authority, and certify the names and addresses of all of them. Takes 10 ms.

    Args:
        scratch: a directory of this machine, for a moment; a virtual machine's files are not written to step by step.
    """
    if not hosts:
        return
    first, *others = hosts
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        own = TrustStore(Path(made))
        authority = Authority(own)
        authority.create(first.name, DEFAULT_PEER_PORT, (first.ip4, first.ip6))
        for host in others:
            pem, trust_list = authority.issue(host.name, DEFAULT_PEER_PORT, (host.ip4, host.ip6))
            _put(host, {HOST_FILE: pem, LIST_FILE: trust_list})
        files = (file for file in own.directory.rglob("*") if file.is_file())
        _put(first, {str(file.relative_to(own.directory)): file.read_text() for file in files})


def _put(host: Host, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = host.path(f"{DIRECTORY}/{name}")
        file.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        file.parent.chmod(0o700)  # a mode is not for the parents that are made
        file.write_text(text)
        file.chmod(0o600)
