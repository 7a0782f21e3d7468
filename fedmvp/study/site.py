"""A site's folder: keys that never leave it, its configuration, and the installed study.

site/
  identity.key  tls.key       private, mode 0600, made here
  request.json                public; sent to the consortium once
  client.toml                 where this site finds everything
  study/                      what the consortium signed; replaced as a whole by every join
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import load_client_config
from fedmvp.study.credentials import check_keys
from fedmvp.study.documents import read_document
from fedmvp.study.enrolment import EnrolmentRequest, StudyPackage, make_request, open_package, parse_request
from fedmvp.study.identity import TlsKey
from fedmvp.study.roster import find_site, parse_roster
from fedmvp.study.signatures import load_signing_key, save_signing_key
from fedmvp.study.storage import install_folder, new_folder, write_atomic
from fedmvp.study.templates import CLIENT_TEMPLATE, EMPTY_ADDRESS, toml_value
from secure_agg.keys import SigningKey

CONFIG_FILE = "client.toml"
REQUEST_FILE = "request.json"


@dataclass(frozen=True)
class SiteOptions:
    """What a new site says about itself.

    Args:
        name: its name in the roster: lower-case letters, digits, hyphens.
        organisation: who answers for it.
        data: the image folder or manifest; need not exist yet.
        kind: how the images are listed.
        dataset_id: the records' name in the ledger.
        epsilon_max: the most the records may ever spend.
    """

    name: str
    organisation: str
    data: Path
    kind: Literal["image-folder", "manifest"] = "image-folder"
    dataset_id: str = "records"
    epsilon_max: float = 8.0


def create_site(folder: Path, options: SiteOptions) -> EnrolmentRequest:
    """Make a site's folder: keys, ``request.json`` and ``client.toml``.

    Args:
        folder: a folder that does not exist or is empty.
        options: what goes into request and configuration.

    Returns:
        The request, as the consortium will read it.

    Raises:
        UserError: the folder is not empty, or an option is not valid; nothing is then left behind.
    """
    with new_folder(folder) as staged:
        signing_key, tls_key = SigningKey.generate(), TlsKey.generate()
        request = make_request(options.name, options.organisation, signing_key, tls_key)
        parsed = parse_request(request, source="the request")
        save_signing_key(staged / "identity.key", signing_key)
        tls_key.save(staged / "tls.key")
        write_atomic(staged / REQUEST_FILE, request)
        text = CLIENT_TEMPLATE.format(
            name=toml_value(options.name),
            kind=toml_value(options.kind),
            data=toml_value(str(options.data.absolute())),
            dataset_id=toml_value(options.dataset_id),
            epsilon_max=toml_value(options.epsilon_max),
        )
        write_atomic(staged / CONFIG_FILE, text.encode())
        load_client_config(staged / CONFIG_FILE, environment={})
    return parsed


def join(config_path: Path, package: Path, *, root_fingerprint: str) -> StudyPackage:
    """Install a package at a site, after checking all of it.

    Args:
        config_path: the site's ``client.toml``; the study goes where it looks for the policy.
        package: the file the consortium sent.
        root_fingerprint: the root's fingerprint, learned by another way than the file.

    Returns:
        The package, so that its terms can be shown.

    Raises:
        UserError: a check failed; nothing was written.
    """
    config = load_client_config(config_path, environment={})
    document = read_document(package, what="study package", remedy="name the file that the consortium sent")
    opened = open_package(document, root_fingerprint=root_fingerprint, source=str(package))
    if opened.file.site != config.site.name:
        raise UserError(
            f"{package} is for site {opened.file.site!r}; this folder is site {config.site.name!r}",
            remedy="ask the consortium for this site's package",
            exit_code=ExitCode.IDENTITY,
        )
    signing_key = load_signing_key(config.identity.signing_key, what="signing key")
    tls_key = TlsKey.load(config.identity.private_key)
    check_keys(find_site(opened.roster, config.site.name), signing_key.verify_key, tls_key.sha256)
    _refuse_older_roster(config.study.roster, opened)
    install_folder(config.study.policy.parent, opened.files())
    _fill_in_address(config_path, opened.file.server_address)
    return opened


def _refuse_older_roster(installed: Path, package: StudyPackage) -> None:
    """An old package brings a revoked site back; the roster's version only ever grows."""
    if not installed.exists():
        return
    present = parse_roster(installed.read_bytes(), source=str(installed))
    if present.version > package.roster.version:
        raise UserError(
            f"the package carries roster version {package.roster.version}; version {present.version} is installed",
            remedy="ask the consortium for the latest package",
            exit_code=ExitCode.IDENTITY,
        )


def _fill_in_address(config_path: Path, address: str) -> None:
    """Put the server's address where client.toml still has none; a person's own choice is left alone."""
    text = config_path.read_text(encoding="utf-8")
    filled = re.sub(rf"(?m)^{re.escape(EMPTY_ADDRESS)}", lambda _: f"address = {toml_value(address)}", text, count=1)
    if filled != text:
        write_atomic(config_path, filled.encode())
