from __future__ import annotations

import base64
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.identity import (
    CERTIFICATE_DAYS,
    Authority,
    TlsKey,
    certificate_hosts,
    certificate_pem,
    check_certificate,
    check_key_pair,
    parse_certificate,
    parse_signing_request,
    signing_request,
    spki_sha256,
)
from fedmvp.study.signatures import check_fingerprint, fingerprint, load_signing_key, save_signing_key
from secure_agg.keys import SigningKey


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("run-1")


@pytest.fixture(scope="module")
def key() -> TlsKey:
    return TlsKey.generate()


@pytest.fixture(scope="module")
def certificate(authority, key) -> x509.Certificate:
    return authority.site_certificate(key.private.public_key(), "site-1")


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind).value


def test_a_site_certificate_names_the_site_and_opens_connections_only(certificate):
    names = extension(certificate, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["fedmvp:site:site-1"]
    assert names.get_values_for_type(x509.DNSName) == []
    assert list(extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not extension(certificate, x509.BasicConstraints).ca


def test_a_server_certificate_names_its_hosts(authority, key):
    certificate = authority.server_certificate(key.private.public_key(), ["study.example", "127.0.0.1", "::1"])
    assert certificate_hosts(certificate) == ["study.example", "127.0.0.1", "::1"]
    assert list(extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_host_that_is_no_name_is_refused(authority, key):
    with pytest.raises(UserError, match="not a host name"):
        authority.server_certificate(key.private.public_key(), ["spital-zürich.example"])


def test_a_certificate_is_in_force_for_its_days(certificate, authority):
    assert check_certificate(certificate, authority.certificate, source="c") == CERTIFICATE_DAYS - 1


def test_an_expired_certificate_is_refused(certificate, authority):
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=CERTIFICATE_DAYS + 1)
    with pytest.raises(UserError, match="expired on") as caught:
        check_certificate(certificate, authority.certificate, source="c", now=later)
    assert caught.value.exit_code is ExitCode.IDENTITY


def test_a_certificate_of_the_future_is_refused(certificate, authority):
    earlier = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    with pytest.raises(UserError, match="not valid before"):
        check_certificate(certificate, authority.certificate, source="c", now=earlier)


def test_a_certificate_of_another_authority_is_refused(certificate):
    with pytest.raises(UserError, match="not issued by the consortium's CA"):
        check_certificate(certificate, Authority.create("run-1").certificate, source="c")


def test_a_certificate_with_another_key_is_refused(certificate, key):
    check_key_pair(certificate, key, source="c")
    with pytest.raises(UserError, match="another private key"):
        check_key_pair(certificate, TlsKey.generate(), source="c")


def test_a_certificate_never_outlives_its_authority(authority, key):
    issued = authority.site_certificate(key.private.public_key(), "site-1")
    assert issued.not_valid_after_utc <= authority.certificate.not_valid_after_utc


def test_a_certificate_survives_pem(certificate):
    assert parse_certificate(certificate_pem(certificate), source="c") == certificate


@pytest.mark.parametrize("pem", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(pem):
    with pytest.raises(UserError, match="not a certificate"):
        parse_certificate(pem, source="c")


def test_a_signing_request_proves_the_key(key):
    assert spki_sha256(parse_signing_request(signing_request(key, "site-1"), source="r")) == key.sha256


def test_a_signing_request_changed_after_signing_is_refused(key):
    request = x509.load_pem_x509_csr(signing_request(key, "site-1"))
    der = bytearray(request.public_bytes(Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(UserError, match="not a valid P-256 request"):
        parse_signing_request(pem_of(bytes(der)), source="r")


def pem_of(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"


def test_keys_show_nothing_of_themselves(key, tmp_path):
    secret = str(key.private.private_numbers().private_value)
    assert secret not in repr(key)
    signing_key = SigningKey.generate()
    save_signing_key(tmp_path / "identity.key", signing_key)
    assert load_signing_key(tmp_path / "identity.key", what="k").verify_key == signing_key.verify_key
    assert signing_key.to_bytes().hex() not in repr(signing_key)


def test_a_tls_key_is_no_signing_key(key, tmp_path):
    key.save(tmp_path / "tls.key")
    with pytest.raises(UserError, match="not an unencrypted Ed25519 key"):
        load_signing_key(tmp_path / "tls.key", what="signing key")
    save_signing_key(tmp_path / "identity.key", SigningKey.generate())
    with pytest.raises(UserError, match="not an unencrypted ECDSA key"):
        TlsKey.load(tmp_path / "identity.key")


def test_a_fingerprint_is_accepted_as_people_write_it():
    public = SigningKey.generate().verify_key
    digits = fingerprint(public).removeprefix("sha256:")
    grouped = " ".join(digits[i : i + 8] for i in range(0, 64, 8)).upper()
    for text in (fingerprint(public), digits, grouped, ":".join(digits[i : i + 2] for i in range(0, 64, 2))):
        check_fingerprint(public, text)


def test_another_fingerprint_is_refused():
    public, other = SigningKey.generate().verify_key, SigningKey.generate().verify_key
    with pytest.raises(UserError, match="not the one you gave") as caught:
        check_fingerprint(public, fingerprint(other))
    assert caught.value.exit_code is ExitCode.IDENTITY


@pytest.mark.parametrize("text", ["", "sha256:", "ab12", "z" * 64, "0" * 63])
def test_a_shortened_fingerprint_is_refused(text):
    with pytest.raises(UserError, match="is not a root fingerprint") as caught:
        check_fingerprint(SigningKey.generate().verify_key, text)
    assert caught.value.exit_code is ExitCode.USAGE
