"""The list of what is trusted: roots, revoked certificates, where the authority is. Signed: anyone may carry it.

Every connection between agents exchanges it, and a host takes the one with the higher number if a root that it already
trusts has signed it. A list grows only by certificates that are revoked and not yet expired: a few bytes each.
Pure.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from phaul.errors import NotTrustedError
from phaul.trust.certificates import Key, certificates_pem, fingerprint, public_key_of, read_certificates

DOMAIN = b"phaul trust list 1\n"  # what the root's key signs is never a certificate, which begins with 0x30
LONGEST_BYTES = 128 * 1024
_ALGORITHM = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class TrustList:
    """What a host trusts.

    Attributes:
        number: grows with every change; the higher one is taken.
        authority: HOST:PORT of the agent that renews certificates, in the order to try; may be empty.
        roots: newest first.
        revoked: serial numbers as hex, with the end of each certificate, in seconds since 1970.
    """

    number: int
    authority: tuple[str, ...]
    roots: tuple[x509.Certificate, ...]
    revoked: Mapping[str, int] = field(default_factory=dict)

    def revokes(self, certificate: x509.Certificate) -> bool:
        """Whether it has been taken back."""
        return serial_of(certificate) in self.revoked

    def changed(self, now: datetime.datetime, **changes: object) -> TrustList:
        """The next list; what has expired meanwhile needs no mention any more."""
        next_one = dataclasses.replace(self, number=self.number + 1, **changes)  # type: ignore[arg-type]
        kept = {serial: end for serial, end in next_one.revoked.items() if end >= int(now.timestamp())}
        return dataclasses.replace(next_one, revoked=kept)


def serial_of(certificate: x509.Certificate) -> str:
    """As the list writes it."""
    return f"{certificate.serial_number:x}"


def sign(trust_list: TrustList, keys: Sequence[tuple[x509.Certificate, Key]]) -> str:
    """Write a list, signed by each of the roots given."""
    body = json.dumps(
        {
            "number": trust_list.number,
            "authority": list(trust_list.authority),
            "roots": certificates_pem(trust_list.roots),
            "revoked": dict(trust_list.revoked),
        },
        sort_keys=True,
    )
    signatures = {
        fingerprint(root): base64.b64encode(key.sign(DOMAIN + body.encode(), _ALGORITHM)).decode() for root, key in keys
    }
    return json.dumps({"body": body, "signatures": signatures})


def read(text: str) -> TrustList:
    """Read a list, without asking who signed it. Raises `NotTrustedError` where it is none."""
    try:
        if len(text) > LONGEST_BYTES:
            raise ValueError(f"longer than {LONGEST_BYTES} bytes")
        body = json.loads(json.loads(text)["body"])
        return TrustList(
            int(body["number"]),
            tuple(str(each) for each in body["authority"]),
            read_certificates(body["roots"]),
            {str(serial): int(end) for serial, end in body["revoked"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise NotTrustedError("what should be a list of what is trusted is none", detail=str(error)) from error


def is_signed_by(text: str, roots: Sequence[x509.Certificate]) -> bool:
    """Whether one of the roots has signed it."""
    try:
        signed = json.loads(text)
        body = str(signed["body"]).encode()
        signatures = {str(name): base64.b64decode(value) for name, value in signed["signatures"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    for root in roots:
        signature = signatures.get(fingerprint(root))
        if signature is None:
            continue
        try:
            public_key_of(root).verify(signature, DOMAIN + body, _ALGORITHM)
        except (InvalidSignature, ValueError):
            continue
        return True
    return False


def is_successor(current: TrustList, offered: str) -> bool:
    """Whether what was offered is newer than what is held, and signed by a root that is trusted now."""
    try:
        found = read(offered)
    except NotTrustedError:
        return False
    return found.number > current.number and is_signed_by(offered, current.roots)
