"""``fedmvp-server``: the consortium's commands and the coordinator's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmvp.cli.exporting import export
from fedmvp.cli.program import (
    config_option,
    format_option,
    insecure_option,
    program_options,
    run_program,
    say,
    stdout,
)
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import load_server_config

if TYPE_CHECKING:
    from fedmvp.study.enrolment import EnrolmentRequest

FolderPath = click.Path(path_type=Path, file_okay=False)
FilePath = click.Path(path_type=Path, dir_okay=False)


def main() -> None:
    """Entry point of ``fedmvp-server``."""
    run_program(server, "fedmvp-server")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@program_options
def server() -> None:
    """Found a study, enrol its sites, and run its coordinator.

    init, plan, enroll, revoke and renew are the consortium's work; run, status and export are the server's.
    """


@server.command("init")
@click.argument("folder", type=FolderPath)
@click.option("--run-id", required=True, help="Unique name of the run, for example chest-2027.")
@click.option("--address", required=True, help="host:port under which sites reach the server.")
@click.option("--listen", help="host:port the server binds.  [default: the address]")
@click.option("--host", "hosts", multiple=True, help="A further name or address for the certificate; repeatable.")
@click.option("--policy", type=FilePath, help="A complete policy.toml instead of the commented template.")
@click.option("--images", type=FolderPath, help="Public images on which the server measures accuracy.")
def init(
    *,
    folder: Path,
    run_id: str,
    address: str,
    listen: str | None,
    hosts: tuple[str, ...],
    policy: Path | None,
    images: Path | None,
) -> None:
    """Make a study in FOLDER: the consortium's keys and the server's folder.

    Prints the fingerprint of the consortium's root key, which every site must be told by another way than the package.
    """
    from fedmvp.study.consortium import create_study_folder  # noqa: PLC0415

    consortium = create_study_folder(
        folder,
        run_id=run_id,
        address=_endpoint(address, "--address"),
        listen=_endpoint(listen or address, "--listen"),
        hosts=hosts,
        policy_text=_policy_text(policy) if policy is not None else None,
        evaluation_images=images,
    )
    stdout().print(consortium.root_fingerprint)
    say(f"made {folder / 'consortium'}: the root and CA keys. Keep this folder offline, with a backup.")
    say(f"made {folder / 'server'}: the server's key, certificate and server.toml. Copy it to the server.")
    say(f"next: edit {folder / 'consortium' / 'policy.toml'}, collect request.json of every site, then")
    say(f"      fedmvp-server enroll --study {folder} REQUEST...")


def _policy_text(policy: Path) -> str:
    from fedmvp.study.documents import read_document  # noqa: PLC0415

    document = read_document(policy, what="policy", remedy="name an existing file")
    try:
        return document.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"policy {policy} is not UTF-8 text", remedy="name a policy.toml, saved as UTF-8; or leave --policy out"
        ) from None


@server.command("plan")
@click.option("--study", type=FolderPath, default=".", show_default=True, help="The study or the consortium folder.")
@click.option("--policy", "policy_file", type=FilePath, help="Any policy.toml instead of the study's.")
@click.option(
    "--target-epsilon", type=float, help="Print instead the noise_multiplier with which all rounds cost this much."
)
@format_option
def plan(study: Path, policy_file: Path | None, target_epsilon: float | None, style: str) -> None:
    """Show epsilon by round of a policy before it is signed, or the noise that a target epsilon needs.

    Both are for a site that is in every round, at the policy's delta, and leave out what its records spent before.
    """
    from fedmvp.cli.plan import print_calibration, print_plan, read_policy  # noqa: PLC0415
    from fedmvp.study.consortium import policy_path  # noqa: PLC0415

    policy = read_policy(policy_file if policy_file is not None else policy_path(study))
    if target_epsilon is None:
        print_plan(policy, style)
    else:
        print_calibration(policy, target_epsilon, style)


@server.command("enroll")
@click.argument("requests", nargs=-1, type=FilePath)
@click.option("--study", type=FolderPath, default=".", show_default=True, help="The study or the consortium folder.")
@click.option("--server", "server_folder", type=FolderPath, help="The server's folder.  [default: beside consortium]")
@click.option("--yes", is_flag=True, help="Do not ask; you have compared the fingerprints.")
@click.option("--revoke", "revoked", help="Withdraw this site's keys instead; same as the command revoke.")
def enroll(requests: tuple[Path, ...], study: Path, server_folder: Path | None, yes: bool, revoked: str | None) -> None:
    """Approve site requests, sign roster and policy, and write packages/SITE.json.

    Epsilon by round is shown first: what you sign is what every site may spend.

    Without a request the documents are signed again: do so after editing policy.toml. A request that is enrolled
    already gets a new certificate. Every site installs its new package with fedmvp-client join.
    """
    if revoked is not None:
        if requests:
            raise click.UsageError("give requests or --revoke, not both")
        _revoke(revoked, study, server_folder)
        return
    from fedmvp.cli.plan import show_plan  # noqa: PLC0415
    from fedmvp.study.consortium import enrol, open_consortium  # noqa: PLC0415

    consortium = open_consortium(study)
    parsed = [_read_request(path) for path in requests]
    for request in parsed:
        say(f"{request.name} ({request.organisation}): request {request.fingerprint}")
    folder = _server_folder(consortium.folder, server_folder)
    show_plan(consortium.policy)
    if parsed and not yes:
        click.confirm("Did each site confirm its fingerprint by another way than the file?", abort=True, err=True)
    roster = enrol(consortium, parsed, server=folder)
    for entry in roster.entries:
        if not entry.revoked:
            stdout().print(str(consortium.folder / "packages" / f"{entry.name}.json"), soft_wrap=True)
    policy = consortium.policy
    active = len(roster.active_ids)
    say(f"signed policy {policy.hash.hex()[:16]} and roster version {roster.version} with {active} active sites")
    if active < policy.aggregation.min_cohort:
        say(f"warning: rounds need {policy.aggregation.min_cohort} sites, {active} are enrolled")
    say(f"next: send each site its package, and tell it the root fingerprint: {consortium.root_fingerprint}")


@server.command("revoke")
@click.argument("site")
@click.option("--study", type=FolderPath, default=".", show_default=True, help="The study or the consortium folder.")
@click.option("--server", "server_folder", type=FolderPath, help="The server's folder.  [default: beside consortium]")
def revoke_command(site: str, study: Path, server_folder: Path | None) -> None:
    """Withdraw the keys of SITE in a new edition of the roster."""
    _revoke(site, study, server_folder)


@server.command("renew")
@click.option("--study", type=FolderPath, default=".", show_default=True, help="The study or the consortium folder.")
@click.option("--server", "server_folder", type=FolderPath, help="The server's folder.  [default: beside consortium]")
@click.option("--host", "hosts", multiple=True, help="A further name or address for the certificate; repeatable.")
def renew(study: Path, server_folder: Path | None, hosts: tuple[str, ...]) -> None:
    """Issue the server's certificate again, for the same key; restart the server afterwards."""
    from fedmvp.study.consortium import open_consortium, renew_server_certificate  # noqa: PLC0415

    consortium = open_consortium(study)
    folder = _server_folder(consortium.folder, server_folder)
    if folder is None:
        raise UserError(
            "the server's folder is not beside the consortium's",
            remedy="name it with --server",
            exit_code=ExitCode.USAGE,
        )
    names = renew_server_certificate(consortium, folder, hosts=hosts)
    stdout().print(str(folder / "server.pem"), soft_wrap=True)
    say(f"renewed for {', '.join(names)}; restart the server to use it")


@server.command("run")
@config_option("server.toml")
@click.option("--listen", help="host:port to bind, instead of [server] listen.")
@insecure_option
def run(config: Path, listen: str | None, insecure: bool) -> None:
    """Run the coordinator until the study's rounds are complete.

    Prints the path of prompts.safetensors, the tuned prompts so far; a stopped run goes on where it was.
    """
    loaded = load_server_config(config, overrides={"server.listen": listen}, insecure=insecure)
    if insecure:
        say("warning: --insecure: no TLS, and nobody proves who they are")
    from fedmvp.cli.running import serve  # noqa: PLC0415 - loads grpc

    serve(loaded)


@server.command("status")
@config_option("server.toml")
@format_option
def status(config: Path, style: str) -> None:
    """Show the run's progress and every site's reported privacy, from the server's state folder."""
    from fedmvp.cli.status import print_status  # noqa: PLC0415

    print_status(load_server_config(config), style)


server.add_command(export)


def _revoke(site: str, study: Path, server_folder: Path | None) -> None:
    from fedmvp.study.consortium import open_consortium, revoke  # noqa: PLC0415

    consortium = open_consortium(study)
    roster = revoke(consortium, site, server=_server_folder(consortium.folder, server_folder))
    stdout().print(f"roster version {roster.version}: {site} revoked, {len(roster.active_ids)} sites active")
    say("next: restart the server, and send every remaining site its new package for fedmvp-client join")


def _read_request(path: Path) -> EnrolmentRequest:
    from fedmvp.study.documents import read_document  # noqa: PLC0415
    from fedmvp.study.enrolment import parse_request  # noqa: PLC0415 - loads cryptography

    return parse_request(read_document(path, what="request", remedy="name the site's request.json"), source=str(path))


def _server_folder(consortium: Path, named: Path | None) -> Path | None:
    """The server's folder: the named one, else the sibling that init made if it is there."""
    if named is not None:
        if not (named / "server.toml").is_file():
            raise UserError(
                f"{named} is not a server's folder: it has no server.toml",
                remedy="name the folder that fedmvp-server init made",
                exit_code=ExitCode.USAGE,
            )
        return named
    sibling = consortium.absolute().parent / "server"
    if (sibling / "server.toml").is_file():
        return sibling
    say("the server's folder is elsewhere: copy policy.toml, roster.json and their .sig files into its study folder")
    return None


def _endpoint(value: str, flag: str) -> str:
    from fedmvp.study.config import split_endpoint  # noqa: PLC0415

    try:
        split_endpoint(value)
    except ValueError as error:
        raise click.UsageError(f"{flag} {value}: {error}") from None
    return value
