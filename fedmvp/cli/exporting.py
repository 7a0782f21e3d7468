"""The command ``export`` of both programs; what it does is in ``fedmvp.cli.export``, which loads torch."""

from __future__ import annotations

from pathlib import Path

import click

from fedmvp.cli.program import format_option


@click.command("export")
@click.option(
    "--prompts",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The prompts.safetensors of a run.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="A new folder.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Local weights of the backbone, where the policy names none.",
)
@format_option
def export(*, prompts: Path, out: Path, checkpoint: Path | None, style: str) -> None:
    """Write tuned prompts as a module that runs without this program.

    The folder holds the frozen vision tower too: look at what it says about size and licence before passing it on.
    Prints the folder.
    """
    from fedmvp.cli.export import export_prompts  # noqa: PLC0415 - loads torch

    export_prompts(prompts, out, checkpoint=checkpoint, style=style)
