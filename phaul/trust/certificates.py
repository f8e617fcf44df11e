"""The certificates that phaul makes and reads: an authority's root, and one a host. Called by the rest of `trust`.

Pure: keys and certificates in, keys and certificates out; the time is handed in. Everything is ECDSA on P-256, which
every TLS library takes, with the fields that RFC 5280 asks for, so that strict verification passes.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from phaul.errors import NotTrustedError, UsageError

HOST_DAYS = 7.0
ROOT_DAYS = 3650.0
BACKDATED = datetime.timedelta(minutes=5)  # clocks of two hosts differ a little
COMMON_NAME_LONGEST = 64  # X.520 ub-common-name

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Names:
    """What a host is called, and the addresses that it calls from and is reached at, without prefix or zone."""

    hosts: tuple[str, ...]
    addresses: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join((*self.hosts, *self.addresses))

    def hold(self, host: str) -> bool:
        """Whether `host`, a name or an address, is one of these."""
        address = plain_address(host)
        if address:
            return address in self.addresses
        return host.rstrip(".").lower() in self.hosts


def names_of(texts: Iterable[str]) -> Names:
    """Sort names and addresses apart, each once. Raises `UsageError` where there is none, or one cannot be a name."""
    hosts: dict[str, None] = {}
    addresses: dict[str, None] = {}
    for text in texts:
        address = plain_address(text)
        name = text.rstrip(".").lower()
        if address:
            addresses[address] = None
        elif name and len(name) <= COMMON_NAME_LONGEST and name.isascii() and name.replace("_", "a").isprintable():
            hosts[name] = None
        else:
            raise UsageError(f"{text!r} can be no host's name")
    if not hosts and not addresses:
        raise UsageError("a certificate needs a name or an address of its host")
    return Names(tuple(hosts), tuple(addresses))


def plain_address(text: str) -> str:
    """An IP address in its one spelling: no brackets, no zone, IPv4 out of IPv6; "" where `text` is none."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def is_loopback_address(text: str) -> bool:
    """Whether it is an address, and of the host itself."""
    address = plain_address(text)
    return bool(address) and ipaddress.ip_address(address).is_loopback


def make_key() -> Key:
    """A new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def make_root(key: Key, name: str, now: datetime.datetime, days: float = ROOT_DAYS) -> x509.Certificate:
    """The self-signed certificate of an authority."""
    subject = _subject(name)
    return _root_of(key.public_key(), subject, subject, key.public_key(), now, now + _days(days)).sign(
        key, hashes.SHA256()
    )


def cross_sign(new: x509.Certificate, old: x509.Certificate, old_key: Key, now: datetime.datetime) -> x509.Certificate:
    """The new root signed by the old: who trusts only the old one can follow it to what the new one signs."""
    end = min(new.not_valid_after_utc, old.not_valid_after_utc)
    return _root_of(public_key_of(new), new.subject, old.subject, public_key_of(old), now, end).sign(
        old_key, hashes.SHA256()
    )


def make_host(
    public_key: ec.EllipticCurvePublicKey,
    names: Names,
    root: x509.Certificate,
    root_key: Key,
    now: datetime.datetime,
    days: float = HOST_DAYS,
) -> x509.Certificate:
    """The certificate of one host, to serve with and to call with."""
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names.hosts]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in names.addresses]
    return (
        x509.CertificateBuilder()
        .subject_name(_subject((*names.hosts, *names.addresses)[0]))
        .issuer_name(root.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(now + _days(days), root.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key_of(root)), critical=False)
        .sign(root_key, hashes.SHA256())
    )


def make_request(key: Key) -> str:
    """A request for a certificate, PEM: it proves that the asker has the key. Names are not asked for but given."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return _pem(builder.sign(key, hashes.SHA256()))


def read_request(pem: str) -> ec.EllipticCurvePublicKey:
    """The key of a request. Raises `NotTrustedError` where it is none, or not signed with its own key."""
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise NotTrustedError("what was sent is no request for a certificate", detail=str(error)) from error
    if not signed or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NotTrustedError("the request for a certificate is not signed with the key that it names")
    return key


def names_in(certificate: x509.Certificate) -> Names:
    """The names and addresses that a certificate is for; none where it says none."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return Names(())
    addresses = (plain_address(str(each)) for each in found.get_values_for_type(x509.IPAddress))
    return Names(
        tuple(name.lower() for name in found.get_values_for_type(x509.DNSName)),
        tuple(address for address in addresses if address),
    )


def certificates_pem(certificates: Iterable[x509.Certificate]) -> str:
    """As one text."""
    return "".join(_pem(each) for each in certificates)


def read_certificates(pem: str) -> tuple[x509.Certificate, ...]:
    """The reverse. Raises ValueError where there is none."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem.encode()))
    except x509.InvalidVersion as error:
        raise ValueError(str(error)) from error


def key_pem(key: Key) -> str:
    """A private key as PKCS#8, not encrypted: the file's mode is what protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def read_key(pem: str) -> Key:
    """The reverse. Raises ValueError where there is none, or another kind."""
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not a key on an elliptic curve")
    return key


def chain_pem(key: Key, chain: Sequence[x509.Certificate]) -> str:
    """A host's key and its certificates, its own first: what a TLS library loads as one file."""
    return key_pem(key) + certificates_pem(chain)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of it, as hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def public_key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Its key. Raises ValueError where it is of another kind than ours."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("the certificate's key is not on an elliptic curve")
    return key


def _root_of(
    public_key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME_LONGEST])])


def _days(days: float) -> datetime.timedelta:
    return datetime.timedelta(days=days)


def _pem(made: x509.Certificate | x509.CertificateSigningRequest) -> str:
    return made.public_bytes(serialization.Encoding.PEM).decode()
