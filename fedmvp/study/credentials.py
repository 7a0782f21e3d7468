"""What a server or a site proves itself with, read from the files its configuration names and checked as a whole.

This is the one place where a run loads keys, certificates and signed documents; ``check`` calls the same functions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import ClientConfig, ClientIdentity, ServerConfig, ServerIdentity, StudyFiles
from fedmvp.study.documents import read_document
from fedmvp.study.identity import TlsKey, check_certificate, check_key_pair, parse_certificate
from fedmvp.study.policy import StudyPolicy, load_policy
from fedmvp.study.roster import find_site, load_roster
from fedmvp.study.signatures import load_root_key, load_signing_key
from fedmvp.study.storage import read_private
from secure_agg.keys import SigningKey
from secure_agg.roster import Roster, RosterEntry


@dataclass(frozen=True)
class SignedStudy:
    """The documents everybody agreed on, verified.

    Args:
        policy: the study policy.
        roster: who takes part.
        root_key: the Ed25519 public key that signed both, 32 bytes.
    """

    policy: StudyPolicy
    roster: Roster
    root_key: bytes


@dataclass(frozen=True)
class TlsFiles:
    """One end of a mutual TLS connection, in PEM.

    Args:
        certificate: the own certificate.
        private_key: its private key; never shown.
        ca: the authority that issued both ends' certificates.
        key_sha256: SHA-256 of the own SubjectPublicKeyInfo, as in the roster.
        days_left: days until the certificate expires.
    """

    certificate: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    ca: bytes = field(repr=False)
    key_sha256: bytes
    days_left: int


@dataclass(frozen=True)
class SiteCredentials:
    """Everything a site needs to take part.

    Args:
        study: the signed documents.
        entry: the site's own line of the roster.
        signing_key: its Ed25519 identity.
        tls: its end of the connection.
    """

    study: SignedStudy
    entry: RosterEntry
    signing_key: SigningKey
    tls: TlsFiles


def load_study(files: StudyFiles) -> SignedStudy:
    """Read and verify the policy and the roster.

    Raises:
        UserError: a file is missing, or was not signed by this root, or is not valid.
    """
    root_key = load_root_key(files.root_key)
    return SignedStudy(
        policy=load_policy(files.policy, files.policy_signature, root_key),
        roster=load_roster(files.roster, files.roster_signature, root_key),
        root_key=root_key,
    )


def load_tls(identity: ServerIdentity | ClientIdentity) -> TlsFiles:
    """Read certificate, key and CA and check that they belong together and are in force.

    Raises:
        UserError: missing, readable by others, expired, of another CA, or certificate and key do not match.
    """
    remedy = "join with the study package (sites), or fedmvp-server renew (server)"
    certificate = read_document(identity.certificate, what="certificate", remedy=remedy)
    ca = read_document(identity.ca, what="CA certificate", remedy=remedy)
    held = parse_certificate(certificate, source=f"certificate {identity.certificate}")
    authority = parse_certificate(ca, source=f"CA certificate {identity.ca}")
    key = TlsKey.load(identity.private_key)
    check_key_pair(held, key, source=f"certificate {identity.certificate}")
    days_left = check_certificate(held, authority, source=f"certificate {identity.certificate}")
    private_key = read_private(identity.private_key, what="TLS key")
    return TlsFiles(certificate, private_key, ca, key.sha256, days_left)


def load_server(config: ServerConfig) -> tuple[SignedStudy, TlsFiles]:
    """Read everything a server needs to start."""
    return load_study(config.study), load_tls(config.identity)


def load_site(config: ClientConfig) -> SiteCredentials:
    """Read everything a site needs to take part, and check it against the roster.

    Raises:
        UserError: as :func:`load_study` and :func:`load_tls`; or the site is not on the roster, was revoked, or holds
            other keys than the roster lists.
    """
    study = load_study(config.study)
    signing_key = load_signing_key(config.identity.signing_key, what="signing key")
    tls = load_tls(config.identity)
    entry = find_site(study.roster, config.site.name)
    check_keys(entry, signing_key.verify_key, tls.key_sha256)
    return SiteCredentials(study, entry, signing_key, tls)


def check_keys(entry: RosterEntry, verify_key: bytes, tls_key_sha256: bytes) -> None:
    """Raise unless a site holds the keys that its roster entry lists."""
    for held, listed, what in (
        (verify_key, entry.verify_key, "signing key"),
        (tls_key_sha256, entry.tls_key_sha256, "TLS key"),
    ):
        if held != listed:
            raise UserError(
                f"the {what} of this site is not the one the roster lists for {entry.name!r}",
                remedy="restore the keys made by fedmvp-client init, or enrol again under a new name",
                exit_code=ExitCode.IDENTITY,
            )
