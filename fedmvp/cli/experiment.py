"""``fedmvp-experiment``: a researcher's commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fedmvp.cli.program import format_option, program_options, run_program
from fedmvp.errors import ExitCode

Command = TypeVar("Command", bound=Callable[..., Any])
DataPath = click.Path(path_type=Path)
LAYOUTS = ("class-folders", "domain-folders", "split-folders", "manifest")
RULES = ("class-blocks", "dirichlet", "domain", "site", "patient")


def main() -> None:
    """Entry point of ``fedmvp-experiment``."""
    run_program(experiment, "fedmvp-experiment")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@program_options
def experiment() -> None:
    """Study federated prompt tuning on data sets of one's own machine."""


def source_options(command: Command) -> Command:
    """Add what says how a data folder or table is read."""
    for option in (
        click.option("--allow-incomplete", is_flag=True, help="Use the images that are there, whatever is missing."),
        click.option("--classes", help="Class order: a preset, a text file with one a line, or a,b,c."),
        click.option("--layout", type=click.Choice(LAYOUTS), help="How DATA is laid out, where it is no preset."),
        click.option("--preset", help="The data set, by the name of its preset."),
    ):
        command = option(command)
    return command


@experiment.command("presets")
@format_option
def presets(style: str) -> None:
    """List the data sets that are known by name."""
    from fedmvp.cli.datasets import print_presets  # noqa: PLC0415

    print_presets(style)


@experiment.command("data")
@click.argument("data", type=DataPath)
@source_options
@click.option("--decode", is_flag=True, help="Decode every image once, to find files that cannot be read.")
@format_option
def data(
    *,
    data: Path,
    preset: str | None,
    layout: str | None,
    classes: str | None,
    allow_incomplete: bool,
    decode: bool,
    style: str,
) -> None:
    """Look at DATA: what is there, what is missing, what cannot be used.

    Fails with the first thing that would stop a study.
    """
    from fedmvp.cli.datasets import print_data  # noqa: PLC0415
    from fedmvp.data.choice import DataSource  # noqa: PLC0415

    print_data(DataSource(data, preset, layout, classes, allow_incomplete), decode=decode, style=style)


@experiment.command("attributes")
@click.argument("file")
@click.option("--classes", help="Classes to cover: a preset, a text file with one a line, or a,b,c.")
@click.option("--backbone", default="fedmvp-tiny", show_default=True, help="Whose text tower reads the sentences.")
@click.option(
    "--template",
    help="Sentence with {name} and {attribute}; by default the preset's, or a common one.",
)
@format_option
def attributes(*, file: str, classes: str | None, backbone: str, template: str | None, style: str) -> None:
    """Check an attribute FILE (a path, or the name of one of the package's own).

    Looks for classes without attributes, sentences that a text tower would cut, and attributes that several classes
    share.
    """
    from fedmvp.cli.attributes import check_attributes  # noqa: PLC0415

    code = check_attributes(file, classes=classes, backbone=backbone, template=template, style=style)
    if code is not ExitCode.OK:
        raise click.exceptions.Exit(int(code))


@experiment.command("partition")
@click.argument("data", type=DataPath)
@source_options
@click.option("--by", "rule", type=click.Choice(RULES), required=True, help="Who gets which images.")
@click.option("--sites", type=int, help="Number of sites; class-blocks, dirichlet, patient.")
@click.option("--classes-per-site", type=int, help="Length of a block; class-blocks.")
@click.option("--alpha", type=float, default=0.5, show_default=True, help="Small is one-sided; dirichlet.")
@click.option("--seed", type=int, default=0, show_default=True, help="Public seed; dirichlet, patient.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Deal the images of this split only.")
@click.option("--minimum", type=int, default=10, show_default=True, help="Fewest images of a site.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture here, .png or .svg.")
@click.option(
    "--manifests", type=click.Path(path_type=Path, file_okay=False), help="Write a CSV manifest for every site here."
)
@format_option
def partition(
    *,
    data: Path,
    preset: str | None,
    layout: str | None,
    classes: str | None,
    allow_incomplete: bool,
    **options: Any,
) -> None:
    """Deal the images of DATA over sites, and show who holds what."""
    from fedmvp.cli.partition import PartitionOptions, print_partition  # noqa: PLC0415
    from fedmvp.data.choice import DataSource  # noqa: PLC0415

    print_partition(DataSource(data, preset, layout, classes, allow_incomplete), PartitionOptions(**options))


@experiment.command("run")
@click.argument("study", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--data", type=DataPath, help="Folder that the study's data folders lie in.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder; runs/NAME by default.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes; one for each core by default.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where.")
@click.option("--set", "changes", multiple=True, metavar="TABLE.KEY=VALUE", help="A key in place of the file's.")
@click.option("--ray-address", help="The Ray cluster; that of RAY_ADDRESS, or one of this machine, by default.")
@click.option("--sites-as-actors", is_flag=True, help="With ray: each site a process, which talks over the network.")
def run(*, study: Path, data: Path | None, out: Path | None, **options: Any) -> None:
    """Run the cells of STUDY (a TOML file) that are not in the run folder yet.

    Every cell is a federation with the real server, sites, secure sum and ledgers, in one process unless its sites
    are actors. Can be stopped and started again; a finished cell is never run twice.
    """
    from fedmvp.cli.study_run import RunOptions  # noqa: PLC0415
    from fedmvp.cli.study_run import run as run_study  # noqa: PLC0415

    run_study(RunOptions(study, data, out, **options))


@experiment.command("report")
@click.argument("results", nargs=-1, required=True, type=DataPath)
@click.option(
    "--out",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the report is written.",
)
@click.option("--markdown", is_flag=True, help="Print the tables in Markdown too.")
def report(results: tuple[Path, ...], folder: Path, *, markdown: bool) -> None:
    """Write RESULTS as one page, pictures and tables.

    RESULTS are results.parquet files, or folders that hold one; each study is a section.
    """
    from fedmvp.cli.study_report import report_studies  # noqa: PLC0415

    code = report_studies(results, folder, markdown=markdown)
    if code is not ExitCode.OK:
        raise click.exceptions.Exit(int(code))
