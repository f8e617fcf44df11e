"""The authority and the signed list: who gets which certificate, what is taken, and a rotation from end to end."""

from __future__ import annotations

import datetime
import json
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from phaul.errors import NotTrustedError, UsageError
from phaul.trust import certificates, trust_list
from phaul.trust.authority import Authority
from phaul.trust.certificates import Names, make_key, make_request, names_of
from phaul.trust.connections import utc_now
from phaul.trust.refusals import Reason, complaint
from phaul.trust.store import TrustStore
from phaul.trust.trust_list import TrustList

PORT = 7428
KEYS = [make_key() for _ in range(2)]
ROOTS = [certificates.make_root(key, f"root {number}", utc_now()) for number, key in enumerate(KEYS)]


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    store = TrustStore(tmp_path / "trust")
    Authority(store).create("a.example", PORT, ["192.0.2.1"])
    return store


def days_later(days: float) -> Callable[[], datetime.datetime]:
    return lambda: utc_now() + datetime.timedelta(days=days)


def given_to(store: TrustStore, name: str, *also: str, root: Path) -> TrustStore:
    host = TrustStore(root / name)
    pem, text = Authority(store).issue(name, PORT, also)
    host.put_host(pem)
    host.put_list(text)
    return host


def trusts(verifier: TrustStore, shown: TrustStore) -> bool:
    """Whether TLS finds a path, by a handshake in memory."""
    bios = [ssl.MemoryBIO() for _ in range(2)]
    server = verifier.current().server.wrap_bio(bios[0], bios[1], server_side=True)
    client = shown.current().client.wrap_bio(bios[1], bios[0])
    shown.current().client.verify_mode = ssl.CERT_NONE  # only the verifier's mind is asked
    for _ in range(3):
        for each in (client, server):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError:
                return False
    return server.getpeercert(binary_form=True) is not None


def test_all_is_roots_alone(store: TrustStore) -> None:
    for path in [store.directory, *store.directory.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_second_authority_is_not_made_over_the_first(store: TrustStore) -> None:
    with pytest.raises(UsageError, match="already has"):
        Authority(store).create("a.example", PORT, [])


def test_other_hosts_cannot_issue(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the authority's"):
        Authority(TrustStore(tmp_path)).issue("b", PORT, [])


def test_a_certificate_is_short_lived_and_for_these_names(store: TrustStore, tmp_path: Path) -> None:
    host = given_to(store, "B.example.", "192.0.2.2", "2001:DB8::2", root=tmp_path).current()
    assert host.names == Names(("b.example",), ("192.0.2.2", "2001:db8::2"))
    assert host.ends - utc_now() < datetime.timedelta(days=7, minutes=1)
    usage = host.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not usage.ca


def test_a_name_stands_for_one_host(store: TrustStore) -> None:
    with pytest.raises(UsageError, match="already stands for"):
        Authority(store).issue("b", PORT, ["192.0.2.1"])


def test_renewal_keeps_the_names_of_the_record(store: TrustStore, tmp_path: Path) -> None:
    host = given_to(store, "b", "192.0.2.2", root=tmp_path).current()
    key = make_key()
    (certificate, *_) = certificates.read_certificates(Authority(store).renew(host.names, make_request(key)))
    assert certificates.names_in(certificate) == host.names
    assert certificate.public_key() == key.public_key()
    # Its addresses are changed at the authority, and come with the next renewal.
    Authority(store).issue("b", PORT, ["192.0.2.3"])
    (certificate, *_) = certificates.read_certificates(Authority(store).renew(host.names, make_request(key)))
    assert certificates.names_in(certificate).addresses == ("192.0.2.3",)


def test_who_is_revoked_or_unknown_is_not_renewed(store: TrustStore, tmp_path: Path) -> None:
    names = given_to(store, "b", root=tmp_path).current().names
    Authority(store).revoke("b")
    for each in (names, Names(("c",))):
        with pytest.raises(NotTrustedError, match="no record"):
            Authority(store).renew(each, make_request(make_key()))


def test_a_request_that_its_key_did_not_sign_is_refused(store: TrustStore) -> None:
    good = x509.load_pem_x509_csr(make_request(make_key()).encode())
    other = make_key().public_key()
    for bad in ("", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"):
        with pytest.raises(NotTrustedError):
            certificates.read_request(bad)
    assert isinstance(good.public_key(), ec.EllipticCurvePublicKey)
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = good.public_bytes(Encoding.DER)
    old, new = (key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in (good.public_key(), other))
    forged = x509.load_der_x509_csr(der.replace(old, new)).public_bytes(Encoding.PEM).decode()
    with pytest.raises(NotTrustedError, match="not signed with the key"):
        certificates.read_request(forged)


def test_revoked_are_all_certificates_of_a_host(store: TrustStore, tmp_path: Path) -> None:
    first = given_to(store, "b", root=tmp_path).current()
    second = given_to(store, "b", root=tmp_path / "again").current()
    other = given_to(store, "c", root=tmp_path).current()
    Authority(store).revoke("b")
    now = store.current().list
    assert (now.revokes(first.certificate), now.revokes(second.certificate)) == (True, True)
    assert not now.revokes(other.certificate)
    found = complaint(first.certificate, now, "b", utc_now())
    assert found is not None
    assert found.reason is Reason.REVOKED
    # Once they have expired the list need not name them, and the host is forgotten.
    later = Authority(store, days_later(8))
    later.issue("d", PORT, [])
    later.revoke("d")
    assert not store.current().list.revokes(first.certificate)
    assert "b" not in later.hosts()


def test_a_host_that_was_revoked_can_be_given_another(store: TrustStore, tmp_path: Path) -> None:
    old = given_to(store, "b", root=tmp_path).current()
    Authority(store).revoke("b")
    new = given_to(store, "b", root=tmp_path).current()
    assert store.current().list.revokes(old.certificate)
    assert not store.current().list.revokes(new.certificate)
    assert Authority(store).renew(new.names, make_request(make_key()))


def test_a_rotation_cuts_nobody_off(store: TrustStore, tmp_path: Path) -> None:
    authority = Authority(store)
    away, renewed = (given_to(store, name, root=tmp_path) for name in ("away", "renewed"))
    authority.rotate()
    assert [each.name for each in authority.laggards()] == ["away", "renewed"]
    with pytest.raises(UsageError, match="under way"):
        authority.rotate()
    # Who has not heard of it trusts who has renewed, by way of the root that it knows; and the other way about.
    key = make_key()
    chain = authority.renew(renewed.current().names, make_request(key))
    renewed.put_host(certificates.chain_pem(key, certificates.read_certificates(chain)))
    assert away.current().list.number < store.current().list.number
    assert trusts(away, renewed)
    assert trusts(store, away)
    assert [each.name for each in authority.laggards()] == ["away"]
    assert renewed.offer(store.current().list_text)
    assert not renewed.offer(store.current().list_text)
    authority.finish_rotation()
    assert trusts(store, renewed)
    assert not trusts(store, away)
    with pytest.raises(UsageError, match="no rotation"):
        authority.finish_rotation()


def test_a_key_of_another_certificate_changes_nothing(store: TrustStore, tmp_path: Path) -> None:
    before = store.host_file.read_text()
    other = given_to(store, "b", root=tmp_path).current()
    with pytest.raises(NotTrustedError, match="does not fit"):
        store.put_host(certificates.chain_pem(make_key(), [other.certificate]))
    assert store.host_file.read_text() == before


numbers = st.integers(0, 2**31)


@given(numbers, numbers, st.integers(0, 1), st.integers(0, 1))
def test_only_a_newer_list_signed_by_a_trusted_root_is_taken(held: int, offered: int, trusted: int, by: int) -> None:
    mine = TrustList(held, (), (ROOTS[trusted],))
    other = trust_list.sign(TrustList(offered, (), (ROOTS[by],)), [(ROOTS[by], KEYS[by])])
    assert trust_list.is_successor(mine, other) == (offered > held and trusted == by)


@given(st.data())
def test_a_list_that_was_touched_is_not_taken(data: st.DataObject) -> None:
    good = trust_list.sign(TrustList(7, ("a:1",), (ROOTS[0],), {"ab": 9}), [(ROOTS[0], KEYS[0])])
    mine = TrustList(1, (), (ROOTS[0],))
    assert trust_list.is_successor(mine, good)
    body = json.loads(good)["body"]
    at = data.draw(st.integers(0, len(body) - 1))
    other = data.draw(st.characters(codec="ascii", exclude_characters=body[at]))
    changed = json.dumps(json.loads(good) | {"body": body[:at] + other + body[at + 1 :]})
    assert not trust_list.is_successor(mine, changed)


@given(
    st.one_of(
        st.text(),
        st.recursive(
            st.none() | st.integers() | st.text(),
            lambda each: st.lists(each) | st.dictionaries(st.sampled_from(["body", "signatures", "x"]), each),
        ).map(json.dumps),
    )
)
def test_garbage_is_no_list(text: str) -> None:
    assert not trust_list.is_successor(TrustList(0, (), (ROOTS[0],)), text)


@given(st.ip_addresses())
def test_an_address_is_compared_whatever_its_spelling(address: object) -> None:
    names = names_of([str(address)])
    assert names.hold(str(address))
    assert names.hold(f"[{str(address).upper()}]")
    assert not names.hold("192.0.2.255") or str(address) in ("192.0.2.255", "::ffff:192.0.2.255")


@pytest.mark.parametrize("bad", [[], [""], ["a\nb"], ["ä"], ["x" * 70]])
def test_what_is_no_name(bad: list[str]) -> None:
    with pytest.raises(UsageError):
        names_of(bad)
