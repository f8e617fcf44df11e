"""What one host has of trust, as files: its key and certificate, and the list of what is trusted.

A directory, mode 0700, read again when it changes: `host.pem` (private key, certificate and, where an authority was
rotated, the way to its older root) and `list.json`. Each is replaced as a whole, so who reads finds the old or the new
one. The agent and `phaul trust` may have the same directory open at once.
"""

from __future__ import annotations

import datetime
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from phaul.errors import NotTrustedError
from phaul.trust import trust_list
from phaul.trust.certificates import Key, Names, certificates_pem, names_in, read_certificates, read_key
from phaul.trust.trust_list import TrustList

HOST_FILE = "host.pem"
LIST_FILE = "list.json"
PROTOCOL = "phaul-trust/1"  # ALPN: a certificate of ours is good for nothing else


@dataclass(frozen=True, slots=True)
class HostTrust:
    """The files as they were read. `server` and `client` are ready for TLS 1.3 with both sides' certificates."""

    key: Key
    certificate: x509.Certificate
    names: Names
    list_text: str
    list: TrustList
    server: ssl.SSLContext
    client: ssl.SSLContext

    @property
    def ends(self) -> datetime.datetime:
        """When the host's certificate expires."""
        return self.certificate.not_valid_after_utc

    @property
    def is_of_newest_root(self) -> bool:
        """Whether the newest root has signed the host's certificate."""
        return self.certificate.issuer == self.list.roots[0].subject


class TrustStore:
    """The directory. Holds nothing open; `current` gives the same object until a file changes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._seen: tuple[object, ...] = ()
        self._current: HostTrust | None = None

    @property
    def host_file(self) -> Path:
        """Key and certificate."""
        return self.directory / HOST_FILE

    @property
    def list_file(self) -> Path:
        """What is trusted."""
        return self.directory / LIST_FILE

    def exists(self) -> bool:
        """Whether this host was ever given any. One file without the other counts: it must not mean "no encryption"."""
        return self.host_file.exists() or self.list_file.exists()

    def current(self) -> HostTrust:
        """What is trusted now. Raises `NotTrustedError` that names the file which is missing or cannot be used."""
        seen = (_look(self.host_file), _look(self.list_file))
        if self._current is None or seen != self._seen:
            self._current = self._read()
            self._seen = seen
        return self._current

    def put_host(self, pem: str) -> None:
        """Replace key and certificate. Raises `NotTrustedError` and leaves the old where the new are no pair."""
        self._own_directory()
        fresh = self.host_file.with_suffix(".new")
        _write(fresh, pem)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(fresh)
        except (ssl.SSLError, OSError) as error:
            fresh.unlink(missing_ok=True)
            raise NotTrustedError("the certificate that was given does not fit its key", detail=str(error)) from error
        fresh.rename(self.host_file)

    def put_list(self, text: str) -> None:
        """Replace the list, by one that whoever calls has reason to trust."""
        trust_list.read(text)
        self._own_directory()
        write_private(self.list_file, text)

    def offer(self, text: str) -> bool:
        """Take a list that a peer has sent, if it is newer and signed by a root that is trusted here; tell whether."""
        taken = trust_list.is_successor(self.current().list, text)
        if taken:
            self.put_list(text)
        return taken

    def _own_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _read(self) -> HostTrust:
        list_text = _text(self.list_file)
        found = trust_list.read(list_text)
        pem = _text(self.host_file)
        try:
            key, (certificate, *_) = read_key(pem), read_certificates(pem)
            contexts = [self._context(kind, found) for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)]
        except (ValueError, ssl.SSLError) as error:
            raise NotTrustedError(f"{self.host_file} holds no key with its certificate", detail=str(error)) from error
        return HostTrust(key, certificate, names_in(certificate), list_text, found, *contexts)

    def _context(self, kind: int, found: TrustList) -> ssl.SSLContext:
        context = ssl.SSLContext(kind)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # `refusals.complaint` compares, in each direction, and names what it finds
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=certificates_pem(found.roots))
        context.load_cert_chain(self.host_file)
        context.set_alpn_protocols([PROTOCOL])
        if kind == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # every connection shows its certificate
        return context


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise NotTrustedError(
            f"this host's file of trust {path} cannot be read: {reason}",
            hint="`phaul trust issue HOST` on the authority's host makes the files; `phaul trust init` an authority.",
        ) from error


def _look(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_ino, found.st_size)


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, durably, for root's eyes only."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    _write(fresh, text)
    fresh.rename(path)


def _write(path: Path, text: str) -> None:
    """Durably, and for root's eyes only."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
