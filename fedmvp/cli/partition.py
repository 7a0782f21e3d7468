"""``fedmvp-experiment partition``: a data set dealt over sites, as a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmvp.cli.presentation import print_json, print_table
from fedmvp.cli.program import say
from fedmvp.data.choice import DataSource
from fedmvp.data.inspection import require_sound, require_usable
from fedmvp.data.partition import (
    Partition,
    by_class_blocks,
    by_dirichlet,
    by_domain,
    by_patient,
    by_site,
    write_manifests,
)
from fedmvp.data.partition_picture import draw_partition, label_counts
from fedmvp.data.records import ImageCollection
from fedmvp.errors import ExitCode, UserError


@dataclass(frozen=True)
class PartitionOptions:
    """What the command was asked for; each as its option says."""

    rule: str
    sites: int | None = None
    classes_per_site: int | None = None
    alpha: float = 0.5
    seed: int = 0
    split: str | None = None
    minimum: int = 10
    picture: Path | None = None
    manifests: Path | None = None
    style: str = "text"


def print_partition(source: DataSource, options: PartitionOptions) -> None:
    """Deal, check, print, draw.

    Args:
        source: the data.
        options: the rule and what is written.

    Raises:
        UserError: the data or the rule cannot be used, or a site could not train.
    """
    whole = source.open()
    require_sound(whole)
    collection = whole if options.split is None else whole.only(split=options.split)
    partition = deal(collection, options)
    require_usable(partition, collection, minimum_records=options.minimum)
    _show(partition, collection, options.style)
    if options.picture is not None:
        draw_partition(partition, collection, options.picture)
        say(f"wrote {options.picture}")
    if options.manifests is not None:
        files = write_manifests(partition, collection, options.manifests)
        say(f"wrote {len(files)} manifests to {options.manifests}")


def deal(collection: ImageCollection, options: PartitionOptions) -> Partition:
    """Apply the rule that the options name; UserError where it cannot be."""
    match options.rule:
        case "class-blocks":
            return by_class_blocks(collection, classes_per_site=options.classes_per_site, n_sites=options.sites)
        case "dirichlet":
            return by_dirichlet(
                collection,
                n_sites=_sites(options),
                alpha=options.alpha,
                seed=options.seed,
                minimum_records=options.minimum,
            )
        case "patient":
            return by_patient(collection, n_sites=_sites(options), seed=options.seed)
        case "domain":
            return by_domain(collection)
        case "site":
            return by_site(collection)
        case other:
            raise ValueError(f"no such rule: {other}")


def _sites(options: PartitionOptions) -> int:
    if options.sites is None:
        raise UserError(
            f"--by {options.rule} needs --sites", remedy="say how many sites there are", exit_code=ExitCode.USAGE
        )
    return options.sites


def _show(partition: Partition, collection: ImageCollection, style: str) -> None:
    counts = label_counts(partition, collection)
    columns = ("site", "images", "classes", "patients", "domains", "largest class", "its share")
    rows = []
    for share, row in zip(partition.shares, counts, strict=True):
        held = [collection.records[index] for index in share.indices]
        patients = {record.patient for record in held} - {None}
        domains = dict.fromkeys(record.domain for record in held if record.domain is not None)
        largest = int(row.argmax())
        part = f"{row[largest] / len(held):.0%}"
        present = int((row > 0).sum())
        rows.append(
            (
                share.name,
                len(held),
                present,
                len(patients) or None,
                ", ".join(domains) or None,
                collection.classes[largest],
                part,
            )
        )
    if style == "json":
        shares = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json({"rule": partition.rule, "images": partition.n_records, "sites": shares})
        return
    print_table(f"{collection.source.name}: {partition.rule}", columns, rows)
