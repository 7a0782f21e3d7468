"""Who is calling: the public key in the certificate of the connection, looked up in the roster.

Names in certificates are for people. What counts is the SHA-256 of the SubjectPublicKeyInfo, which the consortium
signed into the roster; so a certificate issued by mistake to another key, or to another name, opens nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedmvp.errors import UserError
from fedmvp.rpc.channel import INSECURE_SITE_METADATA
from fedmvp.study.identity import parse_certificate, spki_sha256
from secure_agg.policy import MAX_COHORT_SITES
from secure_agg.roster import Roster

_CACHED_CERTIFICATES = 4 * MAX_COHORT_SITES
"""Parsing a certificate at each call costs more than the call; a roster has fewer sites than this."""


class UnknownCallerError(Exception):
    """The caller is no active site of the roster. The text is fit for the caller to read."""


class CallerTable:
    """Finds the roster's site for a connection.

    Args:
        roster: who may call.
        insecure: take the id from metadata, as there is no TLS (loopback only).
    """

    def __init__(self, roster: Roster, *, insecure: bool = False) -> None:
        active = set(roster.active_ids)
        self._active = active
        self._insecure = insecure
        self._by_key = {entry.tls_key_sha256: entry.site_id for entry in roster.entries if entry.site_id in active}
        self._cache: dict[bytes, int | None] = {}

    def identify(
        self, auth_context: Mapping[str, Iterable[bytes]], metadata: Iterable[tuple[str, str | bytes]] | None
    ) -> int:
        """The caller's site id.

        Raises:
            UnknownCallerError: no certificate, or none that the roster knows.
        """
        if self._insecure:
            return self._from_metadata(metadata or ())
        certificates = tuple(auth_context.get("x509_pem_cert", ()))
        if len(certificates) != 1:
            message = "no client certificate"
            raise UnknownCallerError(message)
        site = self._lookup(certificates[0])
        if site is None:
            message = "the key of this certificate is not that of an active site in the roster"
            raise UnknownCallerError(message)
        return site

    def _lookup(self, certificate: bytes) -> int | None:
        if certificate not in self._cache:
            if len(self._cache) >= _CACHED_CERTIFICATES:
                self._cache.clear()
            try:
                key = parse_certificate(certificate, source="the caller's certificate").public_key()
                self._cache[certificate] = self._by_key.get(spki_sha256(key))
            except UserError:
                self._cache[certificate] = None
        return self._cache[certificate]

    def _from_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> int:
        values = [value for key, value in metadata if key == INSECURE_SITE_METADATA]
        site = int(values[0]) if len(values) == 1 and str(values[0]).isdecimal() else 0
        if site not in self._active:
            message = f"{INSECURE_SITE_METADATA} does not name an active site of the roster"
            raise UnknownCallerError(message)
        return site
