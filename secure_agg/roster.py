"""Who may take part: the public keys of every organisation, as the consortium signed them.

Parsing the file and checking the consortium's signature is the caller's work; what arrives here is checked for
contradictions once and then only read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property

from secure_agg.encoding import Buffer, digest, u32
from secure_agg.errors import RosterError

KEY_BYTES = 32
MAX_SITE_ID = 2**32 - 1


@dataclass(frozen=True)
class RosterEntry:
    """One site.

    Args:
        site_id: unique number of the site, 1 to 2^32 - 1; never given to another site.
        name: unique name of the site.
        organisation: who answers for the site; one active key per organisation.
        verify_key: Ed25519 public key of the site's statements (32 bytes).
        tls_key_sha256: SHA-256 of the SubjectPublicKeyInfo of the site's TLS key (32 bytes).
        revoked: True once the consortium has withdrawn the key.
    """

    site_id: int
    name: str
    organisation: str
    verify_key: bytes
    tls_key_sha256: bytes
    revoked: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.site_id <= MAX_SITE_ID:
            raise RosterError(f"site id {self.site_id} is not between 1 and {MAX_SITE_ID}")
        if not self.name or not self.organisation:
            raise RosterError(f"site {self.site_id} needs a name and an organisation")
        if len(self.verify_key) != KEY_BYTES or len(self.tls_key_sha256) != KEY_BYTES:
            raise RosterError(f"site {self.site_id}: verify key and TLS key hash are {KEY_BYTES} bytes each")


@dataclass(frozen=True)
class Roster:
    """Every site the consortium has admitted, in the order of their ids.

    Args:
        version: number of this edition of the roster; grows with every change.
        entries: the sites, in any order; kept sorted by id.

    Raises:
        RosterError: if ids, names or keys repeat, or an organisation holds two active keys.
    """

    version: int
    entries: tuple[RosterEntry, ...]

    def __post_init__(self) -> None:
        if self.version < 1:
            raise RosterError("a roster's version starts at 1")
        object.__setattr__(self, "entries", tuple(sorted(self.entries, key=lambda entry: entry.site_id)))
        _refuse_repeats("site id", (entry.site_id for entry in self.entries))
        _refuse_repeats("site name", (entry.name for entry in self.entries))
        _refuse_repeats("verify key", (entry.verify_key.hex() for entry in self.entries))
        _refuse_repeats("TLS key", (entry.tls_key_sha256.hex() for entry in self.entries))
        # A second active key would let one organisation count twice among the honest sites (a Sybil).
        _refuse_repeats("active organisation", (entry.organisation for entry in self.entries if not entry.revoked))

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 of the canonical encoding of the whole roster (32 bytes)."""
        fields: list[Buffer] = [u32(self.version)]
        for entry in self.entries:
            fields += [u32(entry.site_id), entry.name.encode(), entry.organisation.encode()]
            fields += [entry.verify_key, entry.tls_key_sha256, bytes([entry.revoked])]
        return digest("fedmvp/roster/v1", *fields)

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {entry.site_id: position for position, entry in enumerate(self.entries)}

    @property
    def active_ids(self) -> tuple[int, ...]:
        """Ids of the sites whose key is not revoked, ascending."""
        return tuple(entry.site_id for entry in self.entries if not entry.revoked)

    def entry(self, site_id: int) -> RosterEntry:
        """Return a site's entry; RosterError if the roster does not know it."""
        position = self._positions.get(site_id)
        if position is None:
            raise RosterError(f"site {site_id} is not on roster version {self.version}")
        return self.entries[position]

    def share_index(self, site_id: int) -> int:
        """Return the x coordinate of a site's secret shares: its position by id, counted from 1."""
        self.entry(site_id)
        return self._positions[site_id] + 1


def _refuse_repeats(what: str, values: Iterable[Hashable]) -> None:
    """Raise RosterError if a value occurs twice."""
    repeated = [str(value) for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise RosterError(f"{what} {repeated[0]} occurs twice on the roster")
