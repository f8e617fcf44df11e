"""Why a connection is refused, by name: the same words on both sides, from TLS's own errors and from our checks.

Called by `connections`. Pure.
"""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509

from phaul.errors import NotTrustedError
from phaul.trust.certificates import Names, names_in
from phaul.trust.trust_list import TrustList


class Reason(StrEnum):
    """What is wrong with the other side's certificate, or with its way to speak."""

    NO_CERTIFICATE = "no certificate"
    OTHER_AUTHORITY = "another authority"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    REVOKED = "revoked"
    OTHER_HOST = "for another host"
    NOT_TLS = "no TLS"
    BROKEN = "broken"


_SAYS = {
    Reason.NO_CERTIFICATE: "it showed no certificate",
    Reason.OTHER_AUTHORITY: "its certificate is from another authority",
    Reason.EXPIRED: "its certificate has expired",
    Reason.NOT_YET_VALID: "its certificate is not yet valid",
    Reason.REVOKED: "its certificate was revoked",
    Reason.OTHER_HOST: "its certificate is for another host",
    Reason.NOT_TLS: "it does not speak TLS 1.3",
    Reason.BROKEN: "the connection broke while both showed their certificates",
}
_REFUSED_US = {
    Reason.NO_CERTIFICATE: "this host showed it no certificate",
    Reason.OTHER_AUTHORITY: "this host's certificate is from another authority than it trusts",
    Reason.EXPIRED: "this host's certificate has expired",
    Reason.NOT_YET_VALID: "this host's certificate is not yet valid over there",
    Reason.REVOKED: "this host's certificate was revoked",
    Reason.OTHER_HOST: "this host's certificate is for another host",
    Reason.NOT_TLS: "it does not speak TLS 1.3",
    Reason.BROKEN: "the connection broke while both showed their certificates",
}
_HINTS = {
    Reason.NO_CERTIFICATE: "Make one on the authority's host (`phaul trust issue HOST`) and copy it there.",
    Reason.OTHER_AUTHORITY: "Both hosts need certificates of one authority: `phaul trust show` on each tells which.",
    Reason.EXPIRED: "Agents renew by themselves while the authority's agent can be reached; is a clock wrong? "
    "If not: `phaul trust issue HOST` on the authority's host, and copy it there.",
    Reason.NOT_YET_VALID: "Compare the clocks of both hosts (`date`).",
    Reason.REVOKED: "If that host shall be trusted again: `phaul trust issue HOST` on the authority's host.",
    Reason.OTHER_HOST: "Name the host as its certificate does (`phaul trust show` there), or give it one with this "
    "name or address: `phaul trust issue HOST --also NAME`.",
    Reason.NOT_TLS: "Does its agent run with --insecure, or without files of trust? `phaul trust show` there tells.",
    Reason.BROKEN: "The log of the other agent may tell more.",
}

# OpenSSL's verification results (x509_vfy.h, 3.0), as `ssl.SSLCertVerificationError.verify_code`.
_VERIFY_CODES = {
    9: Reason.NOT_YET_VALID,
    10: Reason.EXPIRED,
    18: Reason.OTHER_AUTHORITY,  # self-signed
    19: Reason.OTHER_AUTHORITY,  # self-signed in the chain
    20: Reason.OTHER_AUTHORITY,  # no issuer found
    21: Reason.OTHER_AUTHORITY,  # first certificate cannot be verified
    30: Reason.OTHER_AUTHORITY,  # key identifier mismatch
}
_OWN_ERRORS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": Reason.NO_CERTIFICATE,
    "WRONG_VERSION_NUMBER": Reason.NOT_TLS,
    "HTTP_REQUEST": Reason.NOT_TLS,
    "HTTPS_PROXY_REQUEST": Reason.NOT_TLS,
    "UNKNOWN_PROTOCOL": Reason.NOT_TLS,
    "UNSUPPORTED_PROTOCOL": Reason.NOT_TLS,
    "RECORD_LAYER_FAILURE": Reason.NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": Reason.NOT_TLS,
    "BAD_RECORD_TYPE": Reason.NOT_TLS,
    "INVALID_ALERT": Reason.NOT_TLS,
}
# Alerts of the other side (RFC 8446, 6.2), as OpenSSL names them. OpenSSL says bad_certificate for one not yet valid.
_ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": Reason.NO_CERTIFICATE,
    "TLSV1_ALERT_UNKNOWN_CA": Reason.OTHER_AUTHORITY,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": Reason.EXPIRED,
    "SSLV3_ALERT_BAD_CERTIFICATE": Reason.NOT_YET_VALID,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": Reason.REVOKED,
    "TLSV1_ALERT_PROTOCOL_VERSION": Reason.NOT_TLS,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One side would not have the other. `ours`: this side refused the peer; else the peer this side."""

    reason: Reason
    ours: bool
    detail: str = ""

    def error(self, peer: str) -> NotTrustedError:
        """As an error that names the peer."""
        if self.ours:
            message = f"{peer} is not trusted: {_SAYS[self.reason]}"
        elif self.reason in (Reason.NOT_TLS, Reason.BROKEN):
            message = f"{peer} hung up: {_REFUSED_US[self.reason]}"
        else:
            message = f"{peer} does not trust this host: {_REFUSED_US[self.reason]}"
        return NotTrustedError(message, hint=_HINTS[self.reason], detail=self.detail)


def refusal_of(error: ssl.SSLError) -> Refusal:
    """Name what TLS has met, on either side."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # What cannot be followed to a root of ours for any other reason is not from our authority either.
        reason = _VERIFY_CODES.get(error.verify_code, Reason.OTHER_AUTHORITY)
        return Refusal(reason, True, error.verify_message)
    word = error.reason or ""
    if word in _ALERTS:
        return Refusal(_ALERTS[word], False, word)
    return Refusal(_OWN_ERRORS.get(word, Reason.BROKEN), True, str(error))


def complaint(
    certificate: x509.Certificate, trust_list: TrustList, host: str, now: datetime.datetime
) -> Refusal | None:
    """What is wrong with a certificate that TLS found good: revoked, expired meanwhile, not for `host` (what was
    dialled, or the address that the caller has; "" is not compared). None: nothing."""
    if trust_list.revokes(certificate):
        return Refusal(Reason.REVOKED, True, f"serial number {certificate.serial_number:x}")
    if now > certificate.not_valid_after_utc:
        return Refusal(Reason.EXPIRED, True, f"at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC")
    names: Names = names_in(certificate)
    if host and not names.hold(host):
        return Refusal(Reason.OTHER_HOST, True, f"it is for {names}, not for {host}")
    return None
