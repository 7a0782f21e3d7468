"""``fedmvp-client``: a site's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from fedmvp.cli.exporting import export
from fedmvp.cli.program import (
    check_device_name,
    config_option,
    format_option,
    insecure_option,
    program_options,
    run_program,
    say,
    stdout,
)
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import load_client_config

FolderPath = click.Path(path_type=Path, file_okay=False)
FilePath = click.Path(path_type=Path, dir_okay=False)


def main() -> None:
    """Entry point of ``fedmvp-client``."""
    run_program(client, "fedmvp-client")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@program_options
def client() -> None:
    """Take part in a study: keys and images stay here, masked sums leave."""


@client.command("init")
@click.argument("folder", type=FolderPath)
@click.option("--name", required=True, help="The site's name: lower-case letters, digits and hyphens.")
@click.option("--organisation", required=True, help="Who answers for the site.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Image folder, or CSV manifest.")
@click.option("--kind", type=click.Choice(["image-folder", "manifest"]), default="image-folder", show_default=True)
@click.option("--dataset-id", required=True, help="These records' name in the ledger, in every study that uses them.")
@click.option("--epsilon-max", type=float, required=True, help="The most epsilon these records may ever spend.")
def init(
    *,
    folder: Path,
    name: str,
    organisation: str,
    data: Path,
    kind: Literal["image-folder", "manifest"],
    dataset_id: str,
    epsilon_max: float,
) -> None:
    """Make this site's FOLDER: private keys, request.json for the consortium, client.toml.

    Prints the fingerprint of the request, which the consortium will ask you for.
    """
    from fedmvp.study.site import SiteOptions, create_site  # noqa: PLC0415

    options = SiteOptions(name, organisation, data, kind=kind, dataset_id=dataset_id, epsilon_max=epsilon_max)
    request = create_site(folder, options)
    stdout().print(request.fingerprint)
    say(f"made {folder}: keys that never leave it, and client.toml. Back it up.")
    say(f"next: send {folder / 'request.json'} to the consortium, and tell it the fingerprint by telephone")


@client.command("join")
@click.argument("package", type=FilePath)
@click.option("--root", "fingerprint", required=True, help="The consortium's root fingerprint, learned by another way.")
@config_option("client.toml")
def join(package: Path, fingerprint: str, config: Path) -> None:
    """Install the signed PACKAGE that the consortium sent, after checking all of it."""
    from fedmvp.cli.presentation import print_pairs  # noqa: PLC0415
    from fedmvp.study import site  # noqa: PLC0415

    opened = site.join(config, package, root_fingerprint=fingerprint)
    print_pairs(opened.policy.terms())
    if opened.policy.privacy.mode == "UNSAFE-no-dp":
        say("warning: this study gives no differential privacy; use public data only")
    say(f"joined as {opened.file.site}; roster version {opened.roster.version}")
    say("next: fedmvp-client ledger create, then fedmvp-client check")


@client.command("check")
@config_option("client.toml")
@format_option
@click.option("--offline", is_flag=True, help="Do not try to reach the server.")
@insecure_option
def check(config: Path, style: str, offline: bool, insecure: bool) -> None:
    """Look for everything that would stop a run, and print epsilon by round.

    Every problem is named with its remedy; the exit code is that of the first one.
    """
    from fedmvp.cli.checks import check_site  # noqa: PLC0415

    code = check_site(config, style=style, offline=offline, insecure=insecure)
    if code is not ExitCode.OK:
        raise click.exceptions.Exit(int(code))


@client.command("run")
@config_option("client.toml")
@click.option("--server", "address", help="host:port of the server, instead of [server] address.")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:N, instead of [compute] device.")
@insecure_option
def run(config: Path, address: str | None, device: str | None, insecure: bool) -> None:
    """Take part until the study's rounds are complete or the budget is spent.

    Prints the path of prompts.safetensors, the prompts after the last round that this site verified.
    """
    overrides = {"server.address": address, "compute.device": device}
    loaded = load_client_config(config, overrides=overrides, insecure=insecure)
    if not loaded.server.address:
        raise UserError(
            f"{config}: [server] address is empty",
            remedy="install the study package: fedmvp-client join PACKAGE --root ...",
        )
    if insecure:
        say("warning: --insecure: no TLS, and nobody proves who they are")
    from fedmvp.cli.running import participate  # noqa: PLC0415 - loads grpc and torch

    participate(loaded)


@client.command("claim")
@config_option("client.toml")
@format_option
def claim(config: Path, style: str) -> None:
    """Show what is promised for these records: to whom, by which trust, with which gaps.

    The layers are those of NIST SP 800-226. The ledger is only read, also beside a running client.
    """
    from fedmvp.cli.claim import print_claim  # noqa: PLC0415

    print_claim(load_client_config(config), style)


@client.command("audit")
@config_option("client.toml")
@format_option
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds to audit.  [default: those of about a minute]")
@click.option("--canaries", type=click.IntRange(2, 20000), default=1000, show_default=True, help="Invented units.")
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the lower bounds.")
@click.option("--prompts", type=FilePath, help="Attack this released module too; needs --held-out.")
@click.option("--held-out", type=click.Path(path_type=Path), help="Folder or CSV manifest of images not trained on.")
def audit(
    *,
    config: Path,
    style: str,
    rounds: int | None,
    canaries: int,
    confidence: float,
    prompts: Path | None,
    held_out: Path | None,
) -> None:
    """Attack the study's own mechanism, and measure a lower bound on epsilon beside the claimed one.

    The mechanism is run on invented units against a throw-away ledger; the site's ledger is not touched. A bound above
    the claim is exit code 9. A bound below it is no proof of anything. What --prompts prints depends on private images
    and stays at the site.
    """
    from fedmvp.cli.audit import AuditOptions, audit_site  # noqa: PLC0415

    options = AuditOptions(rounds, canaries, confidence, prompts, held_out)
    code = audit_site(load_client_config(config), options, style)
    if code is not ExitCode.OK:
        raise click.exceptions.Exit(int(code))


@client.group("ledger", invoke_without_command=True)
@config_option("client.toml")
@format_option
@click.pass_context
def ledger(context: click.Context, config: Path, style: str) -> None:
    """Verify the chain, and show what these records have spent, entry by entry, and what is left."""
    context.obj = config
    if context.invoked_subcommand is None:
        from fedmvp.cli.ledger import print_ledger  # noqa: PLC0415

        print_ledger(load_client_config(config), style)


@ledger.command("create")
@click.option(
    "--unsafe-no-dp", is_flag=True, help="Permit releases without privacy, for good; epsilon_max must be inf."
)
@click.option(
    "--unit",
    type=click.Choice(["record", "patient", "site"]),
    help="What you expect to be protected; must be the study's.",
)
@click.pass_obj
def ledger_create(config: Path, unsafe_no_dp: bool, unit: str | None) -> None:
    """Start the ledger of this site's records, once in their life, at the study's unit and delta."""
    from fedmvp.cli.ledger import create_ledger  # noqa: PLC0415

    create_ledger(load_client_config(config), unsafe=unsafe_no_dp, unit=unit)


@ledger.command("verify")
@click.pass_obj
def ledger_verify(config: Path) -> None:
    """Check the hash chain from the first entry to the last; prints the head."""
    from fedmvp.cli.ledger import verify_ledger  # noqa: PLC0415

    verify_ledger(load_client_config(config))


@ledger.command("export")
@click.argument("file", type=FilePath)
@click.pass_obj
def ledger_export(config: Path, file: Path) -> None:
    """Write every entry with all fields and hashes to FILE.json or FILE.csv; nothing is overwritten."""
    from fedmvp.cli.ledger import export_ledger  # noqa: PLC0415

    export_ledger(load_client_config(config), file)


@client.command("predict")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--prompts", required=True, type=FilePath, help="The prompts.safetensors of a run.")
@click.option("--checkpoint", type=FilePath, help="Local weights of the backbone, where the policy names none.")
@click.option("--cache", type=FolderPath, help="Keep text features here, for the next call with the same classes.")
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, mps, cuda or cuda:N.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes to show.")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=32, show_default=True, help="Images at once.")
@format_option
def predict(
    *,
    images: tuple[Path, ...],
    prompts: Path,
    checkpoint: Path | None,
    cache: Path | None,
    device: str,
    top: int,
    batch_size: int,
    style: str,
) -> None:
    """Classify IMAGES, files or folders, with tuned prompts; the prompts file names model and classes.

    Images that cannot be read are named at the end, with exit code 3, and do not stop the others.
    """
    check_device_name(device)
    from fedmvp.cli.predict import PredictOptions, print_predictions  # noqa: PLC0415 - loads torch

    options = PredictOptions(checkpoint, cache, device, top, batch_size, style)
    print_predictions(images, prompts, options)


client.add_command(export)


if __name__ == "__main__":  # as torchrun starts it: see fedmvp.client.launch
    main()
