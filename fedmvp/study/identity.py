"""The consortium's certificate authority and the TLS certificates of the server and the sites.

ECDSA P-256 throughout. A certificate opens a connection; who the caller is follows from the hash of its public key in
the signed roster, so names in certificates are for people and for the client's check of the server's host.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import HOST_PATTERN
from fedmvp.study.documents import read_document
from fedmvp.study.storage import read_private, write_private

CERTIFICATE_DAYS = 397
"""What browsers accept at most; a run of a year fits, and a forgotten key does not live for ever."""

AUTHORITY_DAYS = 3650
EXPIRY_WARNING_DAYS = 30
CLOCK_SKEW_MINUTES = 5
"""A certificate is valid from a little before it is made: clocks of sites differ."""

SERVER_URI = "fedmvp:server"
SITE_URI_PREFIX = "fedmvp:site:"


@dataclass(frozen=True)
class TlsKey:
    """An ECDSA P-256 private key.

    Args:
        private: the key; never shown.
    """

    private: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> TlsKey:
        """Draw a new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path, *, what: str = "TLS key") -> TlsKey:
        """Read a PEM key file; refuses one that others can read."""
        try:
            key = load_pem_private_key(read_private(path, what=what), password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UserError(
                f"{what} {path} is not an unencrypted ECDSA key in PEM",
                remedy="restore the file from your backup",
                exit_code=ExitCode.IDENTITY,
            )
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the PEM file with mode 0600; refuses to replace a key."""
        write_private(path, self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the SubjectPublicKeyInfo, as the roster lists it."""
        return spki_sha256(self.private.public_key())


@dataclass(frozen=True)
class Authority:
    """The consortium's certificate authority; its key stays with the consortium, offline.

    Args:
        key: the CA's key.
        certificate: its self-signed certificate.
    """

    key: TlsKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, name: str) -> Authority:
        """Make a new authority for the study called ``name``."""
        key = TlsKey.generate()
        public = key.private.public_key()
        subject = _name(f"{name} CA"[:64])
        builder = (
            _builder(subject, public, AUTHORITY_DAYS)
            .issuer_name(subject)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        return cls(key, builder.sign(key.private, SHA256()))

    @classmethod
    def load(cls, key: Path, certificate: Path) -> Authority:
        """Read the authority's two files."""
        held = load_certificate(certificate, what="CA certificate")
        private = TlsKey.load(key, what="CA key")
        check_key_pair(held, private, source=f"CA certificate {certificate}")
        return cls(private, held)

    def server_certificate(self, public: ec.EllipticCurvePublicKey, hosts: Sequence[str]) -> x509.Certificate:
        """Issue the server's certificate.

        Args:
            public: the server's TLS public key.
            hosts: names and IP addresses under which sites reach it.
        """
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(SERVER_URI)]
        return self._issue(public, "fedmvp server", [*names, *map(_host_name, hosts)], ExtendedKeyUsageOID.SERVER_AUTH)

    def site_certificate(self, public: ec.EllipticCurvePublicKey, name: str) -> x509.Certificate:
        """Issue the certificate of the site called ``name``."""
        uri = x509.UniformResourceIdentifier(SITE_URI_PREFIX + name)
        return self._issue(public, name, [uri], ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self,
        public: ec.EllipticCurvePublicKey,
        common_name: str,
        alternative_names: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
    ) -> x509.Certificate:
        issuer = self.certificate
        builder = (
            _builder(_name(common_name), public, CERTIFICATE_DAYS, not_after=issuer.not_valid_after_utc)
            .issuer_name(issuer.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternative_names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.private.public_key()), critical=False
            )
        )
        return builder.sign(self.key.private, SHA256())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def parse_certificate(pem: bytes, *, source: str) -> x509.Certificate:
    """Parse one certificate in PEM."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.public_key()
    except ValueError:
        raise UserError(
            f"{source} is not a certificate in PEM",
            remedy="install the study package again, or fedmvp-server renew for the server",
            exit_code=ExitCode.IDENTITY,
        ) from None
    return certificate


def load_certificate(path: Path, *, what: str) -> x509.Certificate:
    """Read one certificate from a PEM file."""
    pem = read_document(path, what=what, remedy="install the study package, or fedmvp-server renew for the server")
    return parse_certificate(pem, source=f"{what} {path}")


def spki_sha256(public: object) -> bytes:
    """SHA-256 of a public key's SubjectPublicKeyInfo; 32 bytes."""
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise UserError(
            "a TLS key is not an ECDSA key", remedy="make keys with the init commands", exit_code=ExitCode.IDENTITY
        )
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def check_certificate(
    certificate: x509.Certificate, authority: x509.Certificate, *, source: str, now: datetime.datetime | None = None
) -> int:
    """Check that a certificate is the authority's and in force.

    Args:
        certificate: a server's or a site's.
        authority: the consortium's CA certificate.
        source: the file's name for messages.
        now: the time to judge by, UTC; the present by default.

    Returns:
        Days until it expires.

    Raises:
        UserError: signed by somebody else, expired, or not valid yet.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise UserError(
            f"{source} was not issued by the consortium's CA",
            remedy="install the study package again: certificate and CA come together",
            exit_code=ExitCode.IDENTITY,
        ) from None
    moment = now or datetime.datetime.now(datetime.UTC)
    for held, who in ((certificate, source), (authority, f"the CA of {source}")):
        if moment > held.not_valid_after_utc:
            raise UserError(
                f"{who} expired on {held.not_valid_after_utc:%Y-%m-%d}",
                remedy="ask the consortium to enrol the same request again (sites) or run fedmvp-server renew (server)",
                exit_code=ExitCode.IDENTITY,
            )
        if moment < held.not_valid_before_utc:
            raise UserError(
                f"{who} is not valid before {held.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
                remedy="set this machine's clock",
                exit_code=ExitCode.IDENTITY,
            )
    return (certificate.not_valid_after_utc - moment).days


def check_key_pair(certificate: x509.Certificate, key: TlsKey, *, source: str) -> None:
    """Raise unless ``key`` is the private key of ``certificate``."""
    if spki_sha256(certificate.public_key()) != key.sha256:
        raise UserError(
            f"{source} is for another private key",
            remedy="certificate and key must come from the same init and enrolment; restore the matching pair",
            exit_code=ExitCode.IDENTITY,
        )


def signing_request(key: TlsKey, name: str) -> bytes:
    """Return a PEM certificate signing request, which proves possession of the key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    return builder.sign(key.private, SHA256()).public_bytes(Encoding.PEM)


def parse_signing_request(pem: bytes, *, source: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a signing request whose own signature holds."""
    try:
        request = x509.load_pem_x509_csr(pem)
        public = request.public_key() if request.is_signature_valid else None
    except ValueError:
        public = None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise UserError(
            f"{source}: the TLS signing request is not a valid P-256 request",
            remedy="ask the site to run fedmvp-client init again and send the new request.json",
            exit_code=ExitCode.IDENTITY,
        )
    return public


def certificate_hosts(certificate: x509.Certificate) -> list[str]:
    """Return the host names and addresses of a server certificate."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if re.fullmatch(HOST_PATTERN, host) is None:
        raise UserError(
            f"{host!r} is not a host name or IP address", remedy="write it as sites will", exit_code=ExitCode.USAGE
        )
    return x509.DNSName(host)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    days: int,
    *,
    not_after: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=CLOCK_SKEW_MINUTES))
        .not_valid_after(min(end, not_after) if not_after is not None else end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
