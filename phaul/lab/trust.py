"""Certificates for the hosts of a lab: host a is the authority, so that every lab runs as two hosts in earnest would.

Called by `phaul.lab.cluster` before the agents start.
"""

from __future__ import annotations

from collections.abc import Sequence

from phaul.config import DEFAULT_PEER_PORT
from phaul.lab.host import Host
from phaul.trust.authority import Authority
from phaul.trust.store import TrustStore

DIRECTORY = "/var/lib/phaul/trust"


def give(hosts: Sequence[Host]) -> None:
    """Make the first host the authority, and certify the names and addresses of all of them. Takes 10 ms."""
    if not hosts:
        return
    first, *others = hosts
    authority = Authority(store_of(first))
    authority.create(first.name, DEFAULT_PEER_PORT, (first.ip4, first.ip6))
    for host in others:
        pem, trust_list = authority.issue(host.name, DEFAULT_PEER_PORT, (host.ip4, host.ip6))
        store = store_of(host)
        store.put_host(pem)
        store.put_list(trust_list)


def store_of(host: Host) -> TrustStore:
    """A host's files of trust, as the machine can open them."""
    return TrustStore(host.path(DIRECTORY))
