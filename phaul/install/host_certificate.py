"""The step of `install.host_setup` that gives a host its certificate: by the authority, whose host this must be."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from phaul.errors import InstallError, UsageError
from phaul.install.host_setup import TRUST, put
from phaul.install.ssh import SshHost
from phaul.install.steps import Report, State, Step
from phaul.trust.authority import Authority
from phaul.trust.certificates import is_loopback_address, names_in, names_of, plain_address, read_certificates
from phaul.trust.connections import utc_now
from phaul.trust.store import HOST_FILE, LIST_FILE, TrustStore
from phaul.trust.trust_list import serial_of

RENEW_AT = 1 / 3  # of its life is left: then a new one is given, as the agent itself would ask for one
STEP = "certificate"
_SHOW = f"""sed -n '/BEGIN CERTIFICATE/,/END CERTIFICATE/p' {TRUST}/{HOST_FILE} 2>/dev/null || true"""


def require_authority(store: TrustStore) -> Authority:
    """Raise `UsageError` where this host cannot give certificates."""
    authority = Authority(store)
    if not authority.is_here:
        raise UsageError(
            f"this host is not the authority's: there is no {authority.directory}",
            hint="`phaul trust init` makes it the authority, if there is none yet; else type this on that host.",
        )
    return authority


def addresses_of(name: str, connected: str) -> list[str]:
    """What a host calls from: the addresses of its name, as this host's resolver has it, and the one that answered."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    addresses = {plain_address(str(each[4][0])): None for each in found} | {plain_address(connected): None}
    return [address for address in addresses if address and not is_loopback_address(address)]


def give(host: SshHost, store: TrustStore, name: str, port: int, also: Sequence[str], report: Report) -> bool:
    """Give the host a certificate for its names, unless it has one that will do; tells whether it got one.

    The private key is made here and goes over SSH, once: it is not kept here.
    """
    report(Step(STEP, State.STARTED))
    authority = require_authority(store)
    if not also:
        raise InstallError(
            f"the name {name!r} has no address here that the certificate could be for",
            hint="Name the addresses that it calls from: --also ADDRESS, more than once if need be.",
        )
    wanted = names_of((name, *also))
    shown = host.check(_SHOW, "its certificate could not be read")
    if shown.strip() and _will_do(shown, authority, {*wanted.hosts, *wanted.addresses}):
        there = host.check(f"cat {TRUST}/{LIST_FILE}", "its list of what is trusted could not be read")
        if there == store.list_file.read_text():
            report(Step(STEP, State.UNCHANGED, f"for {wanted}"))
            return False
        put(host, f"{TRUST}/{LIST_FILE}", store.list_file.read_bytes(), 0o600)
        report(Step(STEP, State.DONE, "the newest list of what is trusted"))
        return False
    pem, trust_list = authority.issue(name, port, also)
    put(host, f"{TRUST}/{LIST_FILE}", trust_list.encode(), 0o600)
    put(host, f"{TRUST}/{HOST_FILE}", pem.encode(), 0o600)
    report(Step(STEP, State.DONE, f"for {wanted}"))
    return True


def _will_do(shown: str, authority: Authority, wanted: set[str]) -> bool:
    """Whether a certificate is one of ours, for these names, not taken back, and good for some time."""
    try:
        certificate, *_ = read_certificates(shown)
        names = names_in(certificate)
    except ValueError:
        return False
    given = {serial for record in authority.hosts().values() if not record.revoked for serial in record.certificates}
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    fresh = certificate.not_valid_after_utc - utc_now() >= life * RENEW_AT
    return serial_of(certificate) in given and fresh and wanted <= {*names.hosts, *names.addresses}
