"""A whole study on disk in one call: for tests, the demo and trying things out on one machine.

It goes through the same functions as the commands, so what it makes is what the commands make. In a real study the
three kinds of folder are on machines of different organisations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmvp.study.consortium import SERVER_FOLDER, create_study_folder, enrol
from fedmvp.study.policy import StudyPolicy, parse_policy
from fedmvp.study.site import CONFIG_FILE, SiteOptions, create_site, join
from secure_agg.roster import Roster

SITES_FOLDER = "sites"


@dataclass(frozen=True)
class Study:
    """Where everything of a study made by :func:`create_study` lies.

    Args:
        folder: the study folder.
        server_config: the server's ``server.toml``.
        site_configs: each site's ``client.toml`` by name.
        root_fingerprint: fingerprint of the consortium's root.
        policy: the signed policy.
        roster: the signed roster.
    """

    folder: Path
    server_config: Path
    site_configs: dict[str, Path]
    root_fingerprint: str
    policy: StudyPolicy
    roster: Roster


def create_study(
    folder: Path,
    policy_text: str,
    *,
    sites: Sequence[SiteOptions],
    listen: str = "127.0.0.1:8443",
    address: str | None = None,
    evaluation_images: Path | None = None,
) -> Study:
    """Make consortium, server and enrolled sites below ``folder``.

    Args:
        folder: a folder that does not exist or is empty.
        policy_text: the complete ``policy.toml``.
        sites: the sites, in the order of their numbers in the roster (1, 2, ...).
        listen: host:port that the server binds.
        address: host:port under which sites reach it; ``listen`` by default.
        evaluation_images: folder of public images for the server.

    Returns:
        Where everything lies. Ledgers are not made: ``fedmvp-client ledger create`` or ``privacy.Ledger.create`` does.

    Raises:
        UserError: as the commands.
    """
    policy = parse_policy(policy_text.encode())
    consortium = create_study_folder(
        folder,
        run_id=policy.study.run_id,
        address=address or listen,
        listen=listen,
        policy_text=policy_text,
        evaluation_images=evaluation_images,
    )
    server = folder / SERVER_FOLDER
    requests = [create_site(folder / SITES_FOLDER / options.name, options) for options in sites]
    roster = enrol(consortium, requests, server=server)
    for options in sites:
        package = consortium.folder / "packages" / f"{options.name}.json"
        join(folder / SITES_FOLDER / options.name / CONFIG_FILE, package, root_fingerprint=consortium.root_fingerprint)
    return Study(
        folder=folder,
        server_config=server / "server.toml",
        site_configs={options.name: folder / SITES_FOLDER / options.name / CONFIG_FILE for options in sites},
        root_fingerprint=consortium.root_fingerprint,
        policy=consortium.policy,
        roster=roster,
    )
