"""The roster file: which organisations take part, with which keys, signed by the consortium's root.

``roster.json`` is what people and tools read; past :func:`parse_roster` only ``secure_agg.Roster`` travels, whose hash
is part of every round's context.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.documents import Section, parse_json, read_document, validate
from fedmvp.study.signatures import verify_document
from secure_agg.errors import RosterError
from secure_agg.roster import Roster, RosterEntry

ROSTER_TAG = "fedmvp/roster-file/v1"
"""The domain of the file's signature; the hash of the parsed roster has its own."""

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
OrganisationName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$")]


class RosterFileEntry(Section):
    """One site in ``roster.json``."""

    site_id: int = Field(ge=1, lt=2**32)
    name: SiteName
    organisation: OrganisationName
    verify_key: Hex32
    tls_key_sha256: Hex32
    revoked: bool = False


class RosterFile(Section):
    """The content of ``roster.json``."""

    format: Literal["fedmvp-roster-v1"]
    version: int = Field(ge=1, lt=2**32)
    sites: Annotated[tuple[RosterFileEntry, ...], Field(min_length=1, strict=False)]


def roster_document(roster: Roster) -> bytes:
    """Write a roster as the bytes of ``roster.json``."""
    content = {
        "format": "fedmvp-roster-v1",
        "version": roster.version,
        "sites": [
            {
                "site_id": entry.site_id,
                "name": entry.name,
                "organisation": entry.organisation,
                "verify_key": entry.verify_key.hex(),
                "tls_key_sha256": entry.tls_key_sha256.hex(),
                "revoked": entry.revoked,
            }
            for entry in roster.entries
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def parse_roster(document: bytes, *, source: str = "roster.json") -> Roster:
    """Parse the bytes of ``roster.json``.

    Raises:
        UserError: not a roster, or one that contradicts itself (one key twice, two active keys of one organisation).
    """
    file = validate(RosterFile, parse_json(document, source=source), source=source)
    try:
        return Roster(
            version=file.version,
            entries=tuple(
                RosterEntry(
                    site_id=site.site_id,
                    name=site.name,
                    organisation=site.organisation,
                    verify_key=bytes.fromhex(site.verify_key),
                    tls_key_sha256=bytes.fromhex(site.tls_key_sha256),
                    revoked=site.revoked,
                )
                for site in file.sites
            ),
        )
    except RosterError as error:
        raise UserError(
            f"{source}: {error.args[0]}",
            remedy="each organisation takes part with one active key; revoke the other one first",
            exit_code=ExitCode.IDENTITY,
        ) from None


def load_roster(roster: Path, signature: Path, root_key: bytes) -> Roster:
    """Read a roster and check that the consortium's root signed exactly these bytes.

    Args:
        roster: ``roster.json``.
        signature: ``roster.json.sig``.
        root_key: the consortium's Ed25519 public key, 32 bytes.

    Raises:
        UserError: missing, not signed by this root, or not a valid roster.
    """
    document = read_document(
        roster, what="roster", remedy="install the study package: fedmvp-client join, or fedmvp-server enroll"
    )
    verify_document(ROSTER_TAG, document, signature, root_key, source=str(roster))
    return parse_roster(document, source=str(roster))


def find_site(roster: Roster, name: str) -> RosterEntry:
    """Return the active entry of a site by its name.

    Raises:
        UserError: not on the roster, or revoked.
    """
    entry = next((entry for entry in roster.entries if entry.name == name), None)
    if entry is None:
        raise UserError(
            f"site {name!r} is not on roster version {roster.version}",
            remedy="ask the consortium to enrol this site, then join with the new package",
            exit_code=ExitCode.IDENTITY,
        )
    if entry.revoked:
        raise UserError(
            f"site {name!r} was revoked in roster version {roster.version}",
            remedy="ask the consortium why; a new enrolment needs new keys and a new site name",
            exit_code=ExitCode.IDENTITY,
        )
    return entry
