"""Who holds which images: a data set dealt over the sites of an experiment.

A partition is a frozen value in which every record is at exactly one site. No rule parts the images of one patient;
where the data themselves do, that is a mistake with a name. Random rules depend on their seed and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from fedmvp.data.manifests import write_manifest
from fedmvp.data.records import SPLITS, ImageCollection, ImageRecord
from fedmvp.errors import UserError

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

MAX_DRAWS = 1000
"""How often a Dirichlet partition is drawn again because a site came out too small."""


@dataclass(frozen=True)
class SiteShare:
    """What one site holds.

    Attributes:
        name: the site.
        indices: positions in the collection, ascending.
        classes: positions of the classes the site tells apart; all of them, except in class blocks.
    """

    name: str
    indices: tuple[int, ...]
    classes: tuple[int, ...]

    def __repr__(self) -> str:
        return f"SiteShare({self.name})"


@dataclass(frozen=True)
class Partition:
    """A collection dealt over sites.

    Attributes:
        rule: how, with every parameter, in words.
        shares: one a site.
        n_records: records of the collection.
    """

    rule: str
    shares: tuple[SiteShare, ...]
    n_records: int

    def __post_init__(self) -> None:
        held = [index for share in self.shares for index in share.indices]
        if len(held) != self.n_records or set(held) != set(range(self.n_records)):
            raise ValueError("every record is at exactly one site")
        if len({share.name for share in self.shares}) != len(self.shares):
            raise ValueError("site names differ")

    def at(self, name: str, collection: ImageCollection) -> ImageCollection:
        """Return what a site holds, over the classes it tells apart.

        Args:
            name: the site.
            collection: the collection that was dealt.

        Raises:
            KeyError: no such site.
        """
        share = next((share for share in self.shares if share.name == name), None)
        if share is None:
            raise KeyError(name)
        held = collection.take(share.indices)
        return held.of_classes([collection.classes[label] for label in share.classes])


def by_class_blocks(
    collection: ImageCollection, *, classes_per_site: int | None = None, n_sites: int | None = None
) -> Partition:
    """Give each site a contiguous block of classes with all their images, as in the FedMVP paper (blocks of 20).

    Args:
        collection: single-label.
        classes_per_site: length of a block; the last one may be shorter.
        n_sites: instead of a length, this many blocks whose lengths differ by at most one.

    Raises:
        UserError: a multi-label collection, neither or both sizes, more sites than classes, or a patient in two blocks.
    """
    n_classes = len(collection.classes)
    if collection.multi_label:
        raise UserError(
            f"{collection.source}: images of several classes have no class block",
            remedy="partition by dirichlet, patient, site or domain",
        )
    if (classes_per_site is None) == (n_sites is None):
        raise UserError("class blocks need either classes per site or a number of sites", remedy="give one of the two")
    if n_sites is not None:
        if not 1 <= n_sites <= n_classes:
            raise UserError(
                f"{n_classes} classes cannot be dealt to {n_sites} sites", remedy=f"ask for 1 to {n_classes} sites"
            )
        blocks = [tuple(int(at) for at in block) for block in np.array_split(np.arange(n_classes), n_sites)]
    else:
        length = _at_least_one(classes_per_site or 0, "classes per site")
        blocks = [tuple(range(n_classes))[start : start + length] for start in range(0, n_classes, length)]
    owner = {label: site for site, block in enumerate(blocks) for label in block}
    indices = _grouped(range(len(collection)), lambda at: owner[collection.records[at].labels[0]])
    size = f"{classes_per_site} classes a site" if n_sites is None else f"{n_sites} sites"
    shares = tuple(
        SiteShare(f"site-{site + 1}", tuple(indices.get(site, ())), block) for site, block in enumerate(blocks)
    )
    return _whole(Partition(f"class blocks, {size}", shares, len(collection)), collection)


def by_dirichlet(
    collection: ImageCollection, *, n_sites: int, alpha: float, seed: int, minimum_records: int = 1
) -> Partition:
    """Deal each class over the sites in proportions drawn from a symmetric Dirichlet distribution.

    Patients stay whole: a patient is dealt with the class of the first image. An image of several labels counts
    under its first. Small alpha makes sites one-sided. The draw is repeated, from the same stream, until every site
    is large enough.

    Args:
        collection: what is dealt.
        n_sites: sites, at least 1.
        alpha: concentration, above 0.
        seed: 0 or more; equal seeds give equal partitions.
        minimum_records: fewest images of a site.

    Raises:
        UserError: a parameter out of range, or no draw has sites large enough.
    """
    if not 0 < alpha < float("inf"):
        raise UserError(f"alpha is {alpha}", remedy="give a number above 0; 0.1 is very one-sided, 100 nearly even")
    _at_least_one(n_sites, "sites")
    generator = np.random.default_rng(_seed(seed))
    groups = _grouped(_units(collection), lambda unit: collection.records[unit[0]].labels[:1])
    for _ in range(MAX_DRAWS):
        sites: list[list[int]] = [[] for _ in range(n_sites)]
        for label in sorted(groups):
            units = [groups[label][at] for at in generator.permutation(len(groups[label]))]
            shares = generator.dirichlet(np.full(n_sites, alpha))
            cuts = np.floor(np.cumsum(shares)[:-1] * len(units) + 0.5).astype(int)
            for site, part in enumerate(_pieces(units, cuts)):
                sites[site].extend(index for unit in part for index in unit)
        if min(len(held) for held in sites) >= max(1, minimum_records):
            rule = f"dirichlet, {n_sites} sites, alpha {alpha:g}, seed {seed}"
            return _partition(rule, {f"site-{at + 1}": held for at, held in enumerate(sites)}, collection)
    raise UserError(
        f"{collection.source}: {MAX_DRAWS} draws with alpha {alpha:g} gave no {n_sites} sites of "
        f"{max(1, minimum_records)} images",
        remedy="raise alpha, or ask for fewer sites or a smaller minimum",
    )


def by_domain(collection: ImageCollection) -> Partition:
    """Make each domain a site; UserError where an image has no domain, or a patient is in two."""
    return _by_column(collection, "domain", lambda record: record.domain)


def by_site(collection: ImageCollection) -> Partition:
    """Follow the site column of a table; UserError where an image has no site, or a patient is at two."""
    return _by_column(collection, "site", lambda record: record.site)


def by_patient(collection: ImageCollection, *, n_sites: int, seed: int) -> Partition:
    """Deal whole patients, in random order, each to the site that has the fewest images so far.

    Raises:
        UserError: an image has no patient, or there are fewer patients than sites.
    """
    _require_column(collection, "patient", lambda record: record.patient)
    _at_least_one(n_sites, "sites")
    patients = _units(collection)
    if len(patients) < n_sites:
        raise UserError(f"{collection.source}: fewer patients than the {n_sites} sites", remedy="ask for fewer sites")
    sites: list[list[int]] = [[] for _ in range(n_sites)]
    for at in np.random.default_rng(_seed(seed)).permutation(len(patients)):
        min(sites, key=len).extend(patients[at])
    named = {f"site-{site + 1}": held for site, held in enumerate(sites)}
    return _partition(f"patient, {n_sites} sites, seed {seed}", named, collection)


def split_by_patient(collection: ImageCollection, *, fractions: Mapping[str, float], seed: int) -> ImageCollection:
    """Set the split of every image so that no patient is in two; images without a patient are dealt one by one.

    Args:
        collection: its splits are replaced.
        fractions: share of the patients by split; they add up to 1.
        seed: 0 or more.

    Raises:
        UserError: an unknown split, fractions that do not add up to 1, or a split that would stay empty.
    """
    if set(fractions) - set(SPLITS) or abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) <= 0:
        raise UserError(
            f"the fractions {dict(fractions)} do not split a data set",
            remedy=f"give shares above 0 that add up to 1, of {', '.join(SPLITS)}",
        )
    units = _units(collection)
    order = np.random.default_rng(_seed(seed)).permutation(len(units))
    cuts = np.floor(np.cumsum(list(fractions.values()))[:-1] * len(units) + 0.5).astype(int)
    split_of: dict[int, str] = {}
    for name, part in zip(fractions, _pieces([units[at] for at in order], cuts), strict=True):
        if not part:
            raise UserError(
                f"{collection.source}: no patient is left for the split {name}", remedy="give it a larger share"
            )
        split_of.update({index: name for unit in part for index in unit})
    records = (replace(record, split=split_of[at]) for at, record in enumerate(collection.records))
    return replace(collection, records=tuple(records))


def write_manifests(partition: Partition, collection: ImageCollection, folder: Path) -> tuple[Path, ...]:
    """Write `folder/<site>.csv` for every site, with the labels of the whole collection; the files by site."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{share.name}.csv" for share in partition.shares)
    for path, share in zip(paths, partition.shares, strict=True):
        write_manifest(path, collection.take(share.indices))
    return paths


def _by_column(collection: ImageCollection, name: str, value: Callable[[ImageRecord], str | None]) -> Partition:
    _require_column(collection, name, value)
    held = _grouped(range(len(collection)), lambda at: str(value(collection.records[at])))
    return _whole(_partition(name, held, collection), collection)


def _partition(rule: str, held: Mapping[str, Sequence[int]], collection: ImageCollection) -> Partition:
    everything = tuple(range(len(collection.classes)))
    shares = tuple(SiteShare(name, tuple(sorted(indices)), everything) for name, indices in held.items())
    return Partition(rule, shares, len(collection))


def _whole(partition: Partition, collection: ImageCollection) -> Partition:
    """Return the partition if no patient is at two of its sites."""
    place: dict[str, tuple[str, int]] = {}
    for share in partition.shares:
        for index in share.indices:
            patient = collection.records[index].patient
            if patient is None:
                continue
            site, other = place.setdefault(patient, (share.name, index))
            if site != share.name:
                raise UserError(
                    f"{collection.source}, column patient: images {collection.records[other].path} of {site} and "
                    f"{collection.records[index].path} of {share.name} are of one patient",
                    remedy="correct the column, or partition by patient: a patient is protected at one site only",
                )
    return partition


def _require_column(collection: ImageCollection, name: str, value: Callable[[ImageRecord], str | None]) -> None:
    for record in collection.records:
        if value(record) is None:
            raise UserError(
                f"{collection.source}, column {name}: image {record.path} has none",
                remedy=f"give every image its {name}, or partition by another rule",
            )


def _units(collection: ImageCollection) -> list[tuple[int, ...]]:
    """Positions that stay together: all images of a patient, or one image that names none."""
    found = _grouped(range(len(collection)), lambda at: collection.records[at].patient or at)
    return [tuple(indices) for indices in found.values()]


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _pieces(items: Sequence[Item], cuts: Iterable[int]) -> list[Sequence[Item]]:
    places = [0, *(int(cut) for cut in cuts), len(items)]
    return [items[start:end] for start, end in pairwise(places)]


def _at_least_one(value: int, what: str) -> int:
    if value < 1:
        raise UserError(f"{what}: {value}", remedy="give a number from 1 on")
    return value


def _seed(seed: int) -> int:
    if seed < 0:
        raise UserError(f"the seed is {seed}", remedy="give a number from 0 on")
    return seed
