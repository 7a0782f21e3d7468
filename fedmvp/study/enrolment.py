"""The two files of an enrolment: the site's request, and the package that comes back.

A request carries public keys only and is signed by the site's identity key. A package carries everything public that
a site needs and is signed by the consortium's root, so it may travel by any means; the site checks the root's
fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AfterValidator, Field

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.documents import Section, parse_json, validate
from fedmvp.study.identity import (
    TlsKey,
    check_certificate,
    parse_certificate,
    parse_signing_request,
    signing_request,
    spki_sha256,
)
from fedmvp.study.policy import POLICY_TAG, StudyPolicy, parse_policy
from fedmvp.study.roster import ROSTER_TAG, Hex32, OrganisationName, SiteName, find_site, parse_roster
from fedmvp.study.signatures import check_fingerprint, parse_public_pem, verify_signature
from secure_agg.encoding import canonical
from secure_agg.errors import SignatureError
from secure_agg.keys import SigningKey, verify
from secure_agg.roster import Roster, RosterEntry

REQUEST_TAG = "fedmvp/enrolment-request/v1"
PACKAGE_TAG = "fedmvp/study-package/v1"

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Pem = Annotated[str, Field(max_length=16 << 10)]


def _check_printable(text: str) -> str:
    """A request comes from outside and is shown on the consortium's terminal, which must not obey it."""
    if not text.isprintable():
        raise ValueError("must be printable text: no control characters or terminal escapes")
    return text


PrintableName = Annotated[OrganisationName, AfterValidator(_check_printable)]


class RequestFile(Section):
    """The content of ``request.json``."""

    format: Literal["fedmvp-request-v1"]
    name: SiteName
    organisation: PrintableName
    verify_key: Hex32
    tls_request: Pem
    signature: Hex64


@dataclass(frozen=True)
class EnrolmentRequest:
    """A request whose two proofs of possession hold.

    Args:
        name: the site's name.
        organisation: who answers for it.
        verify_key: its Ed25519 identity, 32 bytes.
        tls_key: its TLS public key.
        document: the exact bytes of the file.
    """

    name: str
    organisation: str
    verify_key: bytes
    tls_key: ec.EllipticCurvePublicKey
    document: bytes

    @property
    def fingerprint(self) -> str:
        """What the consortium compares with the site by telephone: SHA-256 over both public keys."""
        return hashlib.sha256(canonical(REQUEST_TAG, self.verify_key, spki_sha256(self.tls_key))).hexdigest()

    def entry(self, site_id: int) -> RosterEntry:
        """The roster entry of this site under a number."""
        return RosterEntry(
            site_id=site_id,
            name=self.name,
            organisation=self.organisation,
            verify_key=self.verify_key,
            tls_key_sha256=spki_sha256(self.tls_key),
        )


def make_request(name: str, organisation: str, signing_key: SigningKey, tls_key: TlsKey) -> bytes:
    """Write the bytes of ``request.json``."""
    tls_request = signing_request(tls_key, name).decode()
    signature = signing_key.sign(
        REQUEST_TAG, name.encode(), organisation.encode(), signing_key.verify_key, tls_request.encode()
    )
    content = {
        "format": "fedmvp-request-v1",
        "name": name,
        "organisation": organisation,
        "verify_key": signing_key.verify_key.hex(),
        "tls_request": tls_request,
        "signature": signature.hex(),
    }
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def parse_request(document: bytes, *, source: str) -> EnrolmentRequest:
    """Parse a request and check that its sender holds both private keys.

    Raises:
        UserError: not a request, or changed after it was made.
    """
    file = validate(RequestFile, parse_json(document, source=source), source=source)
    verify_key = bytes.fromhex(file.verify_key)
    fields = (file.name.encode(), file.organisation.encode(), verify_key, file.tls_request.encode())
    try:
        verify(verify_key, bytes.fromhex(file.signature), REQUEST_TAG, *fields)
    except SignatureError:
        raise UserError(
            f"{source}: the request was changed after the site signed it",
            remedy="ask the site to send its request.json again",
            exit_code=ExitCode.IDENTITY,
        ) from None
    tls_key = parse_signing_request(file.tls_request.encode(), source=source)
    return EnrolmentRequest(file.name, file.organisation, verify_key, tls_key, document)


class PackageFile(Section):
    """The content of ``<site>.json``: public, signed, complete."""

    format: Literal["fedmvp-package-v1"]
    site: SiteName
    server_address: Annotated[str, Field(max_length=300)]
    certificate: Pem
    ca: Pem
    root_key: Pem
    policy: str
    policy_signature: Annotated[str, Field(max_length=200)]
    roster: str
    roster_signature: Annotated[str, Field(max_length=200)]
    signature: Annotated[str, Field(max_length=200)] = ""

    def signed_bytes(self) -> bytes:
        """What the root signs: every field but the signature and the root key itself, in a fixed order."""
        fields = (
            self.site,
            self.server_address,
            self.certificate,
            self.ca,
            self.policy,
            self.policy_signature,
            self.roster,
            self.roster_signature,
        )
        return canonical("fields", *(field.encode() for field in fields))


@dataclass(frozen=True)
class StudyPackage:
    """A package whose every signature holds under the pinned root.

    Args:
        file: the content.
        root_key: the root's Ed25519 public key, 32 bytes.
        policy: the policy inside.
        roster: the roster inside.
    """

    file: PackageFile
    root_key: bytes
    policy: StudyPolicy
    roster: Roster

    def files(self) -> dict[str, bytes]:
        """The files a site keeps in its ``study`` folder, by name."""
        return {
            "site.pem": self.file.certificate.encode(),
            "ca.pem": self.file.ca.encode(),
            "root.pub": self.file.root_key.encode(),
            "policy.toml": self.file.policy.encode(),
            "policy.toml.sig": self.file.policy_signature.encode(),
            "roster.json": self.file.roster.encode(),
            "roster.json.sig": self.file.roster_signature.encode(),
        }


def make_package(file: PackageFile, root: SigningKey) -> bytes:
    """Sign a package and write its bytes."""
    signature = root.sign(PACKAGE_TAG, file.signed_bytes()).hex()
    signed = file.model_copy(update={"signature": signature})
    return json.dumps(signed.model_dump(), indent=2, ensure_ascii=False).encode() + b"\n"


def open_package(document: bytes, *, root_fingerprint: str, source: str) -> StudyPackage:
    """Check a package from the root's fingerprint down to the last document; nothing is written.

    Args:
        document: the bytes of the package.
        root_fingerprint: the fingerprint the site was told by another way.
        source: the file's name for messages.

    Raises:
        UserError: another root, a signature that does not hold, an expired certificate, or a site not on the roster.
    """
    file = validate(PackageFile, parse_json(document, source=source), source=source)
    root_key = parse_public_pem(file.root_key.encode(), source=f"{source}: root_key")
    check_fingerprint(root_key, root_fingerprint)
    verify_signature(PACKAGE_TAG, file.signed_bytes(), file.signature.encode(), root_key, source=source)
    policy_bytes, roster_bytes = file.policy.encode(), file.roster.encode()
    verify_signature(
        POLICY_TAG, policy_bytes, file.policy_signature.encode(), root_key, source=f"{source}: policy.toml"
    )
    verify_signature(
        ROSTER_TAG, roster_bytes, file.roster_signature.encode(), root_key, source=f"{source}: roster.json"
    )
    certificate = parse_certificate(file.certificate.encode(), source=f"{source}: certificate")
    authority = parse_certificate(file.ca.encode(), source=f"{source}: ca")
    check_certificate(certificate, authority, source=f"{source}: certificate")
    roster = parse_roster(roster_bytes, source=f"{source}: roster.json")
    if find_site(roster, file.site).tls_key_sha256 != spki_sha256(certificate.public_key()):
        raise UserError(
            f"{source}: the certificate's key is not the one on the roster",
            remedy="ask the consortium for the package of the latest enrolment",
            exit_code=ExitCode.IDENTITY,
        )
    return StudyPackage(file, root_key, parse_policy(policy_bytes, source=f"{source}: policy.toml"), roster)
