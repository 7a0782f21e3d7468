"""From the certificate of a connection to a site of the roster."""

from __future__ import annotations

import dataclasses

import pytest

from fedmvp.rpc.identity import CallerTable, UnknownCallerError
from fedmvp.study.identity import Authority, TlsKey, certificate_pem
from secure_agg.keys import SigningKey
from secure_agg.roster import Roster, RosterEntry

AUTHORITY = Authority.create("a consortium")
KEYS = [TlsKey.generate() for _ in range(3)]
ROSTER = Roster(
    1,
    tuple(
        RosterEntry(number, f"site-{number}", f"Hospital {number}", SigningKey.generate().verify_key, key.sha256)
        for number, key in enumerate(KEYS, start=1)
    ),
)


def context(*keys: TlsKey, name: str = "site-9") -> dict[str, list[bytes]]:
    certificates = [certificate_pem(AUTHORITY.site_certificate(key.private.public_key(), name)) for key in keys]
    return {"x509_pem_cert": certificates}


def test_the_key_decides_and_not_the_name() -> None:
    assert CallerTable(ROSTER).identify(context(KEYS[1], name="site-1"), ()) == 2


@pytest.mark.parametrize(
    "presented",
    [
        pytest.param({}, id="no certificate"),
        pytest.param(context(TlsKey.generate()), id="an unlisted key"),
        pytest.param(context(KEYS[0], KEYS[1]), id="two certificates"),
        pytest.param({"x509_pem_cert": [b"nonsense"]}, id="no PEM"),
    ],
)
def test_a_stranger_is_refused(presented: dict[str, list[bytes]]) -> None:
    with pytest.raises(UnknownCallerError):
        CallerTable(ROSTER).identify(presented, ())


def test_a_revoked_site_is_a_stranger() -> None:
    entries = (dataclasses.replace(ROSTER.entries[0], revoked=True), *ROSTER.entries[1:])

    with pytest.raises(UnknownCallerError):
        CallerTable(Roster(2, entries)).identify(context(KEYS[0]), ())


def test_metadata_names_the_site_only_without_tls() -> None:
    metadata = (("fedmvp-site", "2"),)

    assert CallerTable(ROSTER, insecure=True).identify({}, metadata) == 2
    with pytest.raises(UnknownCallerError):
        CallerTable(ROSTER).identify({}, metadata)


@pytest.mark.parametrize("value", ["9", "0", "x", ""])
def test_metadata_that_names_no_active_site_is_refused(value: str) -> None:
    with pytest.raises(UnknownCallerError):
        CallerTable(ROSTER, insecure=True).identify({}, (("fedmvp-site", value),))
