from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import load_client_config, load_server_config
from fedmvp.study.consortium import (
    create_study_folder,
    enrol,
    open_consortium,
    renew_server_certificate,
    revoke,
)
from fedmvp.study.credentials import load_server, load_site, load_study
from fedmvp.study.enrolment import make_request, open_package, parse_request
from fedmvp.study.identity import TlsKey, load_certificate, spki_sha256
from fedmvp.study.signatures import load_signing_key
from fedmvp.study.site import SiteOptions, create_site, join
from fedmvp.study.templates import policy_template
from secure_agg.keys import SigningKey


def package_of(study, site: str) -> Path:
    return study.folder / "consortium" / "packages" / f"{site}.json"


def request_of(study, site: str):
    path = study.site_configs[site].with_name("request.json")
    return parse_request(path.read_bytes(), source=str(path))


def rewrite(path: Path, field: str, value) -> None:
    content = json.loads(path.read_text())
    assert field in content
    content[field] = value
    path.write_text(json.dumps(content))


def test_a_whole_study_is_made_and_everybody_can_load_it(study):
    for number, (name, path) in enumerate(study.site_configs.items(), start=1):
        config = load_client_config(path, environment={})
        credentials = load_site(config)
        assert (credentials.entry.site_id, credentials.entry.name) == (number, name)
        assert credentials.study.policy.hash == study.policy.hash
        assert credentials.study.roster.hash == study.roster.hash
        assert config.server.address == "127.0.0.1:8443"
    served, tls = load_server(load_server_config(study.server_config, environment={}))
    assert served.roster.hash == study.roster.hash
    assert served.policy.document == study.policy.document
    assert tls.days_left > 300


def test_the_server_holds_no_key_of_a_site_nor_the_consortiums(study, tree):
    foreign = []
    consortium = study.folder / "consortium"
    for path in [
        consortium / "root.key",
        *(config.with_name("identity.key") for config in study.site_configs.values()),
    ]:
        foreign.append(load_signing_key(path, what="key").to_bytes())
    pems = [consortium / "ca.key", *(config.with_name("tls.key") for config in study.site_configs.values())]
    foreign += [b"".join(path.read_bytes().splitlines()[1:-1]) for path in pems]
    held = tree(study.folder / "server")
    assert [name for name, content in held.items() if b"PRIVATE KEY" in content] == ["server.key"]
    joined = b"".join(b"".join(content.split()) for content in held.values())
    assert not [secret for secret in foreign if secret in joined or secret.hex().encode() in joined]


def test_nothing_that_leaves_a_site_or_reaches_it_holds_a_private_key(study, tree):
    for config in study.site_configs.values():
        own = {name for name, content in tree(config.parent).items() if b"PRIVATE KEY" in content}
        assert own == {"identity.key", "tls.key"}
    packages = tree(study.folder / "consortium" / "packages")
    assert len(packages) == 3
    assert not [name for name, content in packages.items() if b"PRIVATE" in content]


@pytest.mark.parametrize("organisation", ["Clinic\x1b[2J\x1b[1;1Happroved", "Clinic\x07A", "Clinic\u202eA", "A\rB"])
def test_a_request_with_terminal_escapes_is_refused_even_when_signed(organisation):
    document = make_request("site-1", organisation, SigningKey.generate(), TlsKey.generate())
    with pytest.raises(UserError, match="printable") as caught:
        parse_request(document, source="request.json")
    assert caught.value.what.isprintable()


def test_a_request_may_name_an_organisation_in_any_language():
    document = make_request("site-1", "Universitätsklinik 東京", SigningKey.generate(), TlsKey.generate())
    assert parse_request(document, source="request.json").organisation == "Universitätsklinik 東京"


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "site-9"), ("organisation", "Somebody else"), ("verify_key", "ab" * 32), ("signature", "00" * 64)],
)
def test_a_request_changed_on_its_way_is_refused(study, field, value):
    path = study.site_configs["site-1"].with_name("request.json")
    rewrite(path, field, value)
    with pytest.raises(UserError, match="changed after the site signed it") as caught:
        request_of(study, "site-1")
    assert caught.value.exit_code is ExitCode.IDENTITY


def test_a_request_with_the_tls_key_of_another_site_is_refused(study):
    path = study.site_configs["site-1"].with_name("request.json")
    rewrite(
        path,
        "tls_request",
        json.loads(study.site_configs["site-2"].with_name("request.json").read_text())["tls_request"],
    )
    with pytest.raises(UserError, match="changed after"):
        request_of(study, "site-1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("server_address", "evil.example:8443"),
        ("policy", policy_template("run-1").replace("noise_multiplier = 2.0", "noise_multiplier = 0.5")),
        ("policy_signature", "00" * 64),
        ("roster_signature", "00" * 64),
        ("signature", "00" * 64),
        ("signature", ""),
    ],
)
def test_a_package_changed_on_its_way_is_refused_and_nothing_is_written(study, tree, field, value):
    package, config = package_of(study, "site-1"), study.site_configs["site-1"]
    rewrite(package, field, value)
    before = tree(config.parent)
    with pytest.raises(UserError, match="valid signature") as caught:
        join(config, package, root_fingerprint=study.root_fingerprint)
    assert caught.value.exit_code is ExitCode.IDENTITY
    assert tree(config.parent) == before


@pytest.mark.parametrize("field", ["site", "certificate", "ca", "roster"])
def test_a_package_with_a_part_of_another_is_refused(study, other_study, field):
    package = package_of(study, "site-1")
    foreign = json.loads(package_of(other_study, "site-2").read_text())[field]
    rewrite(package, field, foreign)
    with pytest.raises(UserError, match="valid signature"):
        join(study.site_configs["site-1"], package, root_fingerprint=study.root_fingerprint)


def test_a_package_of_another_root_is_refused(study, other_study):
    with pytest.raises(UserError, match="not the one you gave"):
        join(study.site_configs["site-1"], package_of(other_study, "site-1"), root_fingerprint=study.root_fingerprint)


def test_a_swapped_root_key_inside_a_package_is_refused(study, other_study):
    package = package_of(study, "site-1")
    rewrite(package, "root_key", json.loads(package_of(other_study, "site-1").read_text())["root_key"])
    with pytest.raises(UserError, match="not the one you gave"):
        join(study.site_configs["site-1"], package, root_fingerprint=study.root_fingerprint)
    with pytest.raises(UserError, match="valid signature"):
        join(study.site_configs["site-1"], package, root_fingerprint=other_study.root_fingerprint)


def test_the_package_of_another_site_is_refused(study):
    with pytest.raises(UserError, match=r"is for site 'site-2'; this folder is site 'site-1'"):
        join(study.site_configs["site-1"], package_of(study, "site-2"), root_fingerprint=study.root_fingerprint)


def test_a_site_whose_keys_are_not_the_enrolled_ones_cannot_join(study, tmp_path):
    create_site(tmp_path / "again", SiteOptions("site-1", "Hospital 1", tmp_path))
    with pytest.raises(UserError, match="not the one the roster lists"):
        join(tmp_path / "again" / "client.toml", package_of(study, "site-1"), root_fingerprint=study.root_fingerprint)
    assert not (tmp_path / "again" / "study").exists()


def test_a_package_with_an_older_roster_is_refused(study):
    config = study.site_configs["site-1"]
    old = package_of(study, "site-1").read_bytes()
    consortium = open_consortium(study.folder)
    revoke(consortium, "site-3", server=study.folder / "server")
    join(config, package_of(study, "site-1"), root_fingerprint=study.root_fingerprint)
    stale = config.with_name("old.json")
    stale.write_bytes(old)
    with pytest.raises(UserError, match="roster version 1; version 2 is installed"):
        join(config, stale, root_fingerprint=study.root_fingerprint)


def test_joining_twice_changes_nothing_but_is_allowed(study, tree):
    config = study.site_configs["site-1"]
    before = tree(config.parent)
    join(config, package_of(study, "site-1"), root_fingerprint=study.root_fingerprint)
    assert tree(config.parent) == before


def test_join_leaves_an_address_chosen_by_a_person_alone(study):
    config = study.site_configs["site-1"]
    config.write_text(config.read_text().replace('"127.0.0.1:8443"', '"tunnel.example:9000"'))
    join(config, package_of(study, "site-1"), root_fingerprint=study.root_fingerprint)
    assert load_client_config(config, environment={}).server.address == "tunnel.example:9000"


def test_a_package_whose_certificate_is_not_for_the_rostered_key_is_refused(study):
    consortium = open_consortium(study.folder)
    certificates = consortium.folder / "certificates"
    (certificates / "site-1.pem").write_bytes((certificates / "site-2.pem").read_bytes())
    enrol(consortium, [], server=None)
    with pytest.raises(UserError, match="not the one on the roster"):
        open_package(
            package_of(study, "site-1").read_bytes(), root_fingerprint=study.root_fingerprint, source="package"
        )


def test_a_revoked_site_is_told_so(study):
    consortium = open_consortium(study.folder)
    roster = revoke(consortium, "site-2", server=study.folder / "server")
    assert (roster.version, roster.active_ids) == (2, (1, 3))
    assert not package_of(study, "site-2").exists()
    config = load_client_config(study.site_configs["site-2"], environment={})
    folder = study.site_configs["site-2"].parent / "study"
    for name in ("roster.json", "roster.json.sig"):
        (folder / name).write_bytes((consortium.folder / name).read_bytes())
    with pytest.raises(UserError, match="was revoked in roster version 2") as caught:
        load_site(config)
    assert caught.value.exit_code is ExitCode.IDENTITY
    served = load_study(load_server_config(study.server_config, environment={}).study)
    assert served.roster.active_ids == (1, 3)


def test_a_revoked_site_does_not_come_back_under_its_old_keys(study):
    consortium = open_consortium(study.folder)
    revoke(consortium, "site-2", server=None)
    with pytest.raises(UserError, match="was revoked"):
        enrol(consortium, [request_of(study, "site-2")], server=None)
    with pytest.raises(UserError, match="not an active site"):
        revoke(consortium, "site-2", server=None)


def test_numbers_of_sites_are_never_given_again(study, tmp_path):
    consortium = open_consortium(study.folder)
    revoke(consortium, "site-3", server=None)
    request = create_site(tmp_path / "new", SiteOptions("site-3b", "Hospital 3", tmp_path))
    roster = enrol(consortium, [request], server=None)
    assert [(entry.site_id, entry.name, entry.revoked) for entry in roster.entries][2:] == [
        (3, "site-3", True),
        (4, "site-3b", False),
    ]


def test_a_second_site_of_an_organisation_is_refused(study, tmp_path):
    request = create_site(tmp_path / "new", SiteOptions("site-9", "Hospital 1", tmp_path))
    with pytest.raises(UserError, match="active organisation Hospital 1 occurs twice"):
        enrol(open_consortium(study.folder), [request], server=None)


def test_a_taken_name_with_other_keys_is_refused(study, tmp_path):
    request = create_site(tmp_path / "new", SiteOptions("site-1", "Hospital 1", tmp_path))
    with pytest.raises(UserError, match="enrolled with other keys"):
        enrol(open_consortium(study.folder), [request], server=None)


def test_enrolling_a_site_again_renews_its_certificate_and_nothing_else(study):
    consortium = open_consortium(study.folder)
    path = consortium.folder / "certificates" / "site-1.pem"
    before = load_certificate(path, what="certificate")
    roster = enrol(consortium, [request_of(study, "site-1")], server=None)
    after = load_certificate(path, what="certificate")
    assert roster.hash == study.roster.hash
    assert before.serial_number != after.serial_number
    assert spki_sha256(before.public_key()) == spki_sha256(after.public_key())


def test_a_changed_policy_reaches_everybody_by_enrolling_nobody(study):
    consortium = open_consortium(study.folder)
    policy = consortium.folder / "policy.toml"
    policy.write_text(policy.read_text().replace("rounds = 20", "rounds = 25"))
    enrol(consortium, [], server=study.folder / "server")
    config = study.site_configs["site-1"]
    opened = join(config, package_of(study, "site-1"), root_fingerprint=study.root_fingerprint)
    assert opened.policy.study.rounds == 25
    assert load_study(load_server_config(study.server_config, environment={}).study).policy.hash == opened.policy.hash


def test_an_invalid_policy_is_never_signed(study, tree):
    consortium = open_consortium(study.folder)
    policy = consortium.folder / "policy.toml"
    policy.write_text(policy.read_text().replace("rounds = 20", "rounds = -1"))
    before = tree(study.folder)
    with pytest.raises(UserError, match="rounds"):
        enrol(consortium, [], server=study.folder / "server")
    assert tree(study.folder) == before


def test_enrolling_nobody_at_first_is_refused(tmp_path):
    consortium = create_study_folder(tmp_path / "s", run_id="run-1", address="127.0.0.1:1", listen="127.0.0.1:1")
    with pytest.raises(UserError, match="no site is enrolled yet"):
        enrol(consortium, [], server=None)


def test_a_study_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="not a host name"):
        create_study_folder(
            tmp_path / "s", run_id="run-1", address="127.0.0.1:1", listen="127.0.0.1:1", hosts=["no such host"]
        )
    assert not (tmp_path / "s").exists() or list((tmp_path / "s").iterdir()) == []


def test_an_address_nobody_can_call_is_refused(tmp_path):
    with pytest.raises(UserError, match="sites cannot connect to"):
        create_study_folder(tmp_path / "s", run_id="run-1", address="0.0.0.0:1", listen="0.0.0.0:1")


def test_a_consortium_key_that_others_can_read_is_refused(study):
    (study.folder / "consortium" / "root.key").chmod(0o644)
    with pytest.raises(UserError, match="has mode 0644"):
        open_consortium(study.folder)


def test_a_renewed_server_certificate_keeps_key_and_names(study):
    server = study.folder / "server"
    before = load_certificate(server / "server.pem", what="certificate")
    names = renew_server_certificate(open_consortium(study.folder), server, hosts=["study.example"])
    after = load_certificate(server / "server.pem", what="certificate")
    assert set(names) == {"127.0.0.1", "study.example"}
    assert spki_sha256(before.public_key()) == spki_sha256(after.public_key())
    assert before.serial_number != after.serial_number


def test_a_tampered_roster_is_refused(study):
    config = load_client_config(study.site_configs["site-1"], environment={})
    text = config.study.roster.read_text()
    config.study.roster.write_text(text.replace('"revoked": false', '"revoked": true', 1))
    with pytest.raises(UserError, match="valid signature"):
        load_site(config)


def test_a_package_with_a_repeated_key_is_refused(study):
    package = package_of(study, "site-1")
    package.write_text(package.read_text().replace('"site":', '"site": "site-2",\n  "site":', 1))
    with pytest.raises(UserError, match="a key occurs twice"):
        join(study.site_configs["site-1"], package, root_fingerprint=study.root_fingerprint)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"format": "fedmvp-package-v2"}', b"[" * 100_000])
def test_what_is_no_package_is_refused(study, content):
    package = package_of(study, "site-1")
    package.write_bytes(content)
    with pytest.raises(UserError):
        join(study.site_configs["site-1"], package, root_fingerprint=study.root_fingerprint)


def test_an_option_that_is_not_valid_leaves_no_site_behind(tmp_path):
    with pytest.raises(UserError, match="name"):
        create_site(tmp_path / "site", SiteOptions("Not A Name", "Hospital", tmp_path))
    assert not (tmp_path / "site").exists() or list((tmp_path / "site").iterdir()) == []
