"""The authority: the directory on one host that makes certificates for all, and keeps in mind which hosts there are.

Below the host's own directory of trust: `authority/root.pem` (key and root), `authority/older.pem` while a rotation is
under way, `authority/hosts.json`. Used by `phaul trust`, and by the agent of that host to renew. Whoever reads this
directory can make certificates for anyone. A lock keeps two changes at once apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from phaul.errors import NotTrustedError, UsageError
from phaul.trust import trust_list
from phaul.trust.certificates import (
    HOST_DAYS,
    Key,
    Names,
    certificates_pem,
    chain_pem,
    cross_sign,
    fingerprint,
    is_loopback_address,
    make_host,
    make_key,
    make_root,
    names_of,
    plain_address,
    read_certificates,
    read_key,
    read_request,
)
from phaul.trust.connections import utc_now
from phaul.trust.store import TrustStore, write_private
from phaul.trust.trust_list import TrustList, serial_of

DIRECTORY = "authority"


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host that has, or had, a certificate. `certificates`: serial number to (end in seconds since 1970, root)."""

    name: str
    port: int
    names: tuple[str, ...]
    certificates: Mapping[str, tuple[int, str]]
    revoked: bool = False

    @property
    def ends(self) -> int:
        """When its last certificate expires."""
        return max((end for end, _ in self.certificates.values()), default=0)


class Authority:
    """The directory, opened. Every change is written before it is given away."""

    def __init__(self, store: TrustStore, now: Callable[[], datetime.datetime] = utc_now) -> None:
        self._store = store
        self._now = now
        self.directory = store.directory / DIRECTORY

    @property
    def is_here(self) -> bool:
        """Whether this host is the authority's."""
        return (self.directory / "root.pem").exists()

    def create(self, name: str, port: int, also: Sequence[str]) -> None:
        """Begin: a root, a list, and a certificate for this host.

        Raises `UsageError` where this host already has any: the hosts that trust it would be cut off.
        """
        if self._store.exists() or self.is_here:
            raise UsageError(
                f"this host already has files of trust in {self._store.directory}",
                hint="`phaul trust show` tells what they are; move them away to begin anew.",
            )
        names = names_of((name, *also))
        for each in (self._store.directory, self.directory):
            each.mkdir(parents=True, mode=0o700, exist_ok=True)
        with self._locked():
            key, root = self._new_root()
            self._put_root(key, root)
            self._put_hosts({})
            places = [each for each in (*names.hosts, *names.addresses) if not is_loopback_address(each)]
            authority = tuple(f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in places)
            self._publish(TrustList(1, authority, (root,)))
            self._store.put_host(self._give(name, port, names, make_key(), HOST_DAYS))

    def issue(self, name: str, port: int, also: Sequence[str], days: float = HOST_DAYS) -> tuple[str, str]:
        """Make a key and a certificate for a host: what its `host.pem` and `list.json` are to hold."""
        names = names_of((name, *also))
        with self._locked():
            pem = self._give(name, port, names, make_key(), days)
            return pem, self._store.list_file.read_text()

    def renew(self, names: Names, request: str) -> str:
        """Answer the request of a host that has shown a certificate for `names`; gives the chain.

        The names are those of the host's record, not of the request. Raises `NotTrustedError` for a host without one.
        """
        public_key = read_request(request)
        with self._locked():
            hosts = self.hosts()
            record = next((each for each in hosts.values() if each.name in (*names.hosts, *names.addresses)), None)
            if record is None or record.revoked:
                raise NotTrustedError(f"the authority has no record of a host {names}")
            root_key, root = self._root()
            certificate = make_host(public_key, names_of(record.names), root, root_key, self._now())
            self._record(record, certificate, root)
            return certificates_pem((certificate, *self._bridge()))

    def renew_own(self) -> None:
        """Renew the certificate of the authority's own host."""
        own = self._store.current()
        with self._locked():
            for record in self.hosts().values():
                if record.name in (*own.names.hosts, *own.names.addresses):
                    self._store.put_host(
                        self._give(record.name, record.port, names_of(record.names), make_key(), HOST_DAYS)
                    )
                    return
        raise NotTrustedError("the authority has no record of its own host")

    def revoke(self, name: str) -> HostRecord:
        """Take back every certificate of a host. Raises `UsageError` for one that is not known."""
        with self._locked():
            record = self._record_of(name)
            current = self._list()
            taken_back = {serial: end for serial, (end, _) in record.certificates.items()}
            self._put_hosts(self.hosts() | {record.name: dataclasses.replace(record, revoked=True)})
            self._publish(current.changed(self._now(), revoked={**current.revoked, **taken_back}))
        return record

    def rotate(self) -> None:
        """Begin with a new root; the older one is trusted until `finish_rotation`."""
        with self._locked():
            if self._older() is not None:
                raise UsageError(
                    "a rotation is under way already",
                    hint="`phaul trust rotate --finish` ends it, when all have renewed.",
                )
            older_key, older = self._root()
            key, root = self._new_root()
            write_private(
                self.directory / "older.pem",
                chain_pem(older_key, [older, cross_sign(root, older, older_key, self._now())]),
            )
            self._put_root(key, root)
            self._publish(self._list().changed(self._now(), roots=(root, older)))
        self.renew_own()

    def laggards(self) -> tuple[HostRecord, ...]:
        """Hosts whose newest certificate is still from the older root, and has not expired."""
        _, root = self._root()
        name, now = fingerprint(root), self._now().timestamp()
        return tuple(
            record
            for record in self.hosts().values()
            if not record.revoked
            and any(end > now for end, _ in record.certificates.values())
            and all(by != name for _, by in record.certificates.values())
        )

    def finish_rotation(self) -> None:
        """Stop trusting the older root."""
        with self._locked():
            if self._older() is None:
                raise UsageError("no rotation is under way", hint="`phaul trust rotate` begins one.")
            _, root = self._root()
            self._publish(self._list().changed(self._now(), roots=(root,)))
            (self.directory / "older.pem").unlink()
        self.renew_own()

    def hosts(self) -> dict[str, HostRecord]:
        """The hosts that were given certificates, by name."""
        try:
            found = json.loads((self.directory / "hosts.json").read_text())
            return {
                name: HostRecord(
                    name,
                    int(each["port"]),
                    tuple(each["names"]),
                    {serial: (int(end), str(by)) for serial, (end, by) in each["certificates"].items()},
                    bool(each["revoked"]),
                )
                for name, each in found.items()
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotTrustedError(
                f"the authority's record of hosts in {self.directory} cannot be read", detail=str(error)
            ) from error

    def _give(self, name: str, port: int, names: Names, key: Key, days: float) -> str:
        name = plain_address(name) or name.rstrip(".").lower()
        for other in self.hosts().values():
            taken = {
                each
                for each in {name, *names.hosts, *names.addresses} & {other.name, *other.names}
                if not is_loopback_address(each)  # every host has those
            }
            if other.name != name and taken and not other.revoked:
                raise UsageError(
                    f"{', '.join(sorted(taken))} already stands for the host {other.name}",
                    hint=f"`phaul trust revoke {other.name}` first, if that is no more.",
                )
        root_key, root = self._root()
        certificate = make_host(key.public_key(), names, root, root_key, self._now(), days)
        before = self.hosts().get(name)
        kept = before.certificates if before else {}
        self._record(HostRecord(name, port, (*names.hosts, *names.addresses), kept), certificate, root)
        return chain_pem(key, (certificate, *self._bridge()))

    def _record(self, record: HostRecord, certificate: x509.Certificate, root: x509.Certificate) -> None:
        now = self._now().timestamp()
        kept = {serial: each for serial, each in record.certificates.items() if each[0] > now}
        kept[serial_of(certificate)] = (int(certificate.not_valid_after_utc.timestamp()), fingerprint(root))
        self._put_hosts(self.hosts() | {record.name: dataclasses.replace(record, certificates=kept)})

    def _record_of(self, name: str) -> HostRecord:
        wanted = name.rstrip(".").lower()
        for record in self.hosts().values():
            if wanted in (record.name, *record.names):
                return record
        known = ", ".join(sorted(self.hosts())) or "none"
        raise UsageError(f"the authority knows no host {name!r}", hint=f"It knows: {known}.")

    def _new_root(self) -> tuple[Key, x509.Certificate]:
        key = make_key()
        return key, make_root(key, f"phaul authority {secrets.token_hex(4)}", self._now())

    def _root(self) -> tuple[Key, x509.Certificate]:
        if not self.is_here:
            raise UsageError(
                f"this host is not the authority's: there is no {self.directory}",
                hint="Type this on the authority's host; `phaul trust init` makes one.",
            )
        key, (root, *_) = _read_pair(self.directory / "root.pem")
        return key, root

    def _older(self) -> tuple[Key, Sequence[x509.Certificate]] | None:
        path = self.directory / "older.pem"
        return _read_pair(path) if path.exists() else None

    def _bridge(self) -> Sequence[x509.Certificate]:
        """What leads from the new root to the older one, while there are hosts that know only that."""
        older = self._older()
        return older[1][1:] if older else ()

    def _list(self) -> TrustList:
        return trust_list.read(self._store.list_file.read_text())

    def _publish(self, made: TrustList) -> None:
        key, root = self._root()
        older = self._older()
        signers = [(root, key), *([(older[1][0], older[0])] if older else [])]
        self._store.put_list(trust_list.sign(made, signers))

    def _put_root(self, key: Key, root: x509.Certificate) -> None:
        write_private(self.directory / "root.pem", chain_pem(key, [root]))

    def _put_hosts(self, hosts: Mapping[str, HostRecord]) -> None:
        now = int(self._now().timestamp())
        kept = {
            name: dataclasses.asdict(each) for name, each in hosts.items() if not (each.revoked and each.ends < now)
        }
        write_private(self.directory / "hosts.json", json.dumps(kept, indent=1))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.directory.is_dir():
            self._root()  # says why not
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _read_pair(path: Path) -> tuple[Key, Sequence[x509.Certificate]]:
    try:
        pem = path.read_text()
        return read_key(pem), read_certificates(pem)
    except (OSError, ValueError) as error:
        raise NotTrustedError(f"the authority's file {path} cannot be read", detail=str(error)) from error
