"""The consortium's folder: the root and CA keys, and everything that is signed with them.

It holds the only keys that can change the study, so it is kept offline: not on the server, and never at a site. Every
operation here reads the whole state from disk, changes it, and writes signed files; there is nothing to keep running.

    consortium/
      root.key  ca.key            the two private keys, mode 0600
      root.pub  ca.pem            their public halves
      policy.toml  roster.json    with .sig beside each once signed
      study.json                  the address under which sites reach the server
      certificates/<site>.pem     issued certificates
      packages/<site>.json        what each site is sent
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import Endpoint, is_wildcard, split_endpoint
from fedmvp.study.documents import Section, parse_json, read_document, validate
from fedmvp.study.enrolment import EnrolmentRequest, PackageFile, make_package
from fedmvp.study.identity import (
    Authority,
    TlsKey,
    certificate_hosts,
    certificate_pem,
    load_certificate,
    spki_sha256,
)
from fedmvp.study.policy import POLICY_TAG, StudyPolicy, parse_policy
from fedmvp.study.roster import ROSTER_TAG, load_roster, roster_document
from fedmvp.study.signatures import (
    fingerprint,
    load_signing_key,
    public_pem,
    save_signing_key,
    sign_document,
)
from fedmvp.study.storage import install_folder, new_folder, write_atomic
from fedmvp.study.templates import SERVER_TEMPLATE, policy_template, toml_value
from secure_agg.errors import RosterError
from secure_agg.keys import SigningKey
from secure_agg.roster import Roster, RosterEntry

CONSORTIUM_FOLDER = "consortium"
SERVER_FOLDER = "server"
STUDY_FOLDER = "study"


class StudyFacts(Section):
    """The content of ``study.json``."""

    server_address: Endpoint


@dataclass(frozen=True)
class Consortium:
    """An opened consortium folder.

    Args:
        folder: where it lies.
        root: the key that signs documents.
        authority: the CA that issues certificates.
        server_address: host:port under which sites reach the server.
    """

    folder: Path
    root: SigningKey
    authority: Authority
    server_address: str

    @property
    def root_fingerprint(self) -> str:
        """What every site compares before it joins."""
        return fingerprint(self.root.verify_key)

    @property
    def roster(self) -> Roster | None:
        """The signed roster, or None before the first enrolment."""
        path = self.folder / "roster.json"
        if not path.exists():
            return None
        return load_roster(path, path.with_name("roster.json.sig"), self.root.verify_key)

    @property
    def policy(self) -> StudyPolicy:
        """The policy as it stands in the folder, signed or not."""
        path = self.folder / "policy.toml"
        return parse_policy(read_document(path, what="study policy", remedy="restore policy.toml"), source=str(path))


def create_study_folder(
    folder: Path,
    *,
    run_id: str,
    address: str,
    listen: str,
    hosts: Sequence[str] = (),
    policy_text: str | None = None,
    evaluation_images: Path | None = None,
) -> Consortium:
    """Make a new study: the consortium's folder and the server's, side by side in ``folder``.

    Args:
        folder: a folder that does not exist or is empty.
        run_id: the run's unique name, put into the policy template.
        address: host:port under which sites reach the server; its host goes into the server's certificate.
        listen: host:port that the server binds.
        hosts: further names and addresses for the certificate.
        policy_text: a complete policy instead of the template.
        evaluation_images: folder of public images for the server.

    Returns:
        The opened consortium folder.

    Raises:
        UserError: the folder is not empty, or an address or the policy is not valid; nothing is then left behind.
    """
    if is_wildcard(address):
        raise UserError(
            f"sites cannot connect to {address}",
            remedy="give the name or address under which sites reach this server: --address host:port",
            exit_code=ExitCode.USAGE,
        )
    policy = (policy_text or policy_template(run_id)).encode()
    parse_policy(policy)
    names = list(dict.fromkeys([split_endpoint(address)[0], *hosts]))
    with new_folder(folder) as staged:
        consortium = _create_consortium(staged / CONSORTIUM_FOLDER, run_id, address, policy)
        server = staged / SERVER_FOLDER
        server.mkdir(mode=0o700)
        key = TlsKey.generate()
        key.save(server / "server.key")
        certificate = consortium.authority.server_certificate(key.private.public_key(), names)
        write_atomic(server / "server.pem", certificate_pem(certificate))
        write_atomic(server / "ca.pem", certificate_pem(consortium.authority.certificate))
        write_atomic(server / "root.pub", public_pem(consortium.root.verify_key))
        images = toml_value(str(evaluation_images.absolute()) if evaluation_images is not None else "")
        write_atomic(server / "server.toml", SERVER_TEMPLATE.format(listen=toml_value(listen), images=images).encode())
    return replace(consortium, folder=folder / CONSORTIUM_FOLDER)


def _create_consortium(folder: Path, run_id: str, address: str, policy: bytes) -> Consortium:
    folder.mkdir(mode=0o700)
    root, authority = SigningKey.generate(), Authority.create(run_id)
    save_signing_key(folder / "root.key", root)
    authority.key.save(folder / "ca.key")
    write_atomic(folder / "root.pub", public_pem(root.verify_key))
    write_atomic(folder / "ca.pem", certificate_pem(authority.certificate))
    write_atomic(folder / "policy.toml", policy)
    write_atomic(folder / "study.json", json.dumps({"server_address": address}, indent=2).encode() + b"\n")
    return Consortium(folder, root, authority, address)


def open_consortium(folder: Path) -> Consortium:
    """Open the consortium's folder of a study.

    Args:
        folder: the folder itself, or the study folder that holds it.

    Raises:
        UserError: no such folder, a key that others can read, or keys and certificates that do not match.
    """
    if not (folder / "root.key").exists() and (folder / CONSORTIUM_FOLDER).is_dir():
        folder = folder / CONSORTIUM_FOLDER
    facts = read_document(
        folder / "study.json",
        what="study description",
        remedy="name the consortium's folder with --study; fedmvp-server init makes one",
    )
    source = str(folder / "study.json")
    return Consortium(
        folder,
        root=load_signing_key(folder / "root.key", what="consortium root key"),
        authority=Authority.load(folder / "ca.key", folder / "ca.pem"),
        server_address=validate(StudyFacts, parse_json(facts, source=source), source=source).server_address,
    )


def policy_path(folder: Path) -> Path:
    """Where the policy of a study lies; no key is read.

    Args:
        folder: the consortium's folder, or the study folder that holds it.
    """
    inner = folder / CONSORTIUM_FOLDER
    return (inner if inner.is_dir() else folder) / "policy.toml"


def enrol(consortium: Consortium, requests: Sequence[EnrolmentRequest], *, server: Path | None) -> Roster:
    """Approve requests: extend the roster, sign it and the policy, and write every site's package.

    A request that is on the roster already gets a new certificate (renewal). With no request at all the documents are
    signed again, which is how a changed policy is published.

    Args:
        consortium: the opened folder.
        requests: verified requests.
        server: the server's folder, which gets the signed documents too; None when it is elsewhere.

    Returns:
        The new roster.

    Raises:
        UserError: the policy is not valid, a name or organisation is taken, or there is nobody to enrol.
    """
    roster = consortium.roster
    added = [request for request in requests if not _is_listed(roster, request)]
    if added:
        held = roster.entries if roster is not None else ()
        first = max((entry.site_id for entry in held), default=0) + 1
        entries = tuple(request.entry(site_id) for site_id, request in enumerate(added, start=first))
        roster = _changed_roster(roster.version + 1 if roster is not None else 1, (*held, *entries))
    if roster is None:
        raise UserError(
            "no site is enrolled yet, and no request was given",
            remedy="give the request.json files of the sites",
            exit_code=ExitCode.USAGE,
        )
    certificates = {
        request.name: certificate_pem(consortium.authority.site_certificate(request.tls_key, request.name))
        for request in requests
    }
    _publish(consortium, roster, certificates, server)
    return roster


def revoke(consortium: Consortium, name: str, *, server: Path | None) -> Roster:
    """Withdraw a site's keys in a new edition of the roster; its number and name are never given again.

    Raises:
        UserError: no such site, or already revoked, or nobody would be left.
    """
    roster = consortium.roster
    entry = next((entry for entry in roster.entries if entry.name == name), None) if roster is not None else None
    if roster is None or entry is None or entry.revoked:
        active = [held.name for held in roster.entries if not held.revoked] if roster is not None else []
        raise UserError(
            f"{name!r} is not an active site of this study",
            remedy="active sites: " + (", ".join(active) or "none"),
            exit_code=ExitCode.USAGE,
        )
    entries = tuple(replace(held, revoked=held.revoked or held.name == name) for held in roster.entries)
    changed = _changed_roster(roster.version + 1, entries)
    _publish(consortium, changed, {}, server)
    (consortium.folder / "packages" / f"{name}.json").unlink(missing_ok=True)
    return changed


def renew_server_certificate(consortium: Consortium, server: Path, *, hosts: Sequence[str] = ()) -> list[str]:
    """Issue a new certificate for the server's existing key.

    Args:
        consortium: the opened folder.
        server: the server's folder.
        hosts: names and addresses to add to those of the present certificate.

    Returns:
        The names in the new certificate.
    """
    present = load_certificate(server / "server.pem", what="server certificate")
    public = present.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise UserError(
            f"{server / 'server.pem'} is not a certificate made by init",
            remedy="restore the server's folder from your backup",
            exit_code=ExitCode.IDENTITY,
        )
    names = list(dict.fromkeys([*certificate_hosts(present), *hosts]))
    renewed = consortium.authority.server_certificate(public, names)
    write_atomic(server / "server.pem", certificate_pem(renewed))
    return names


def _is_listed(roster: Roster | None, request: EnrolmentRequest) -> bool:
    """Whether a request's site is on the roster with the same keys; UserError when only its name is."""
    entry = next((entry for entry in roster.entries if entry.name == request.name), None) if roster else None
    if entry is None:
        return False
    same_keys = (entry.verify_key, entry.tls_key_sha256) == (request.verify_key, spki_sha256(request.tls_key))
    if entry.revoked or not same_keys:
        reason = "was revoked" if entry.revoked else "is enrolled with other keys"
        raise UserError(
            f"site {request.name!r} {reason}",
            remedy="a site that lost its keys is revoked, and enrols again under a new name",
            exit_code=ExitCode.IDENTITY,
        )
    return True


def _changed_roster(version: int, entries: tuple[RosterEntry, ...]) -> Roster:
    try:
        return Roster(version=version, entries=entries)
    except RosterError as error:
        raise UserError(
            f"the roster cannot be extended: {error.args[0]}",
            remedy="each organisation takes part with one active site under one name; revoke the old one first",
            exit_code=ExitCode.IDENTITY,
        ) from None


def _publish(consortium: Consortium, roster: Roster, certificates: dict[str, bytes], server: Path | None) -> None:
    """Sign what stands in the folder and hand it on; certificates first: a crash then leaves the old roster whole."""
    folder = consortium.folder
    policy = consortium.policy.document
    roster_bytes = roster_document(roster)
    documents = {
        "policy.toml": policy,
        "policy.toml.sig": sign_document(consortium.root, POLICY_TAG, policy),
        "roster.json": roster_bytes,
        "roster.json.sig": sign_document(consortium.root, ROSTER_TAG, roster_bytes),
    }
    for name, certificate in certificates.items():
        write_atomic(folder / "certificates" / f"{name}.pem", certificate)
    for name, content in documents.items():
        write_atomic(folder / name, content)
    for entry in roster.entries:
        if not entry.revoked:
            write_atomic(folder / "packages" / f"{entry.name}.json", _package(consortium, entry.name, documents))
    if server is not None:
        install_folder(server / STUDY_FOLDER, documents)


def _package(consortium: Consortium, site: str, documents: dict[str, bytes]) -> bytes:
    certificate = consortium.folder / "certificates" / f"{site}.pem"
    pem = read_document(certificate, what="certificate", remedy="enrol the site's request again")
    file = PackageFile(
        format="fedmvp-package-v1",
        site=site,
        server_address=consortium.server_address,
        certificate=pem.decode(),
        ca=certificate_pem(consortium.authority.certificate).decode(),
        root_key=public_pem(consortium.root.verify_key).decode(),
        policy=documents["policy.toml"].decode(),
        policy_signature=documents["policy.toml.sig"].decode(),
        roster=documents["roster.json"].decode(),
        roster_signature=documents["roster.json.sig"].decode(),
    )
    return make_package(file, consortium.root)
