"""From a study's data to what its sites hold and what its methods are measured on; all that is wrong is said here.

Who holds what depends on the seed. Images that stand for unseen domains or classes are the same for every seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fedmvp import __version__
from fedmvp.client.delta import MARGIN, largest_delta
from fedmvp.data.attribute_file import attributes_from
from fedmvp.data.choice import DataSource
from fedmvp.data.digits import write_class_folders
from fedmvp.data.images import file_digest
from fedmvp.data.inspection import require_sound, require_usable
from fedmvp.data.partition import Partition, by_class_blocks, by_dirichlet, by_domain, by_patient, by_site
from fedmvp.data.presets import load_preset
from fedmvp.data.records import ImageCollection, ImageRecord, merge
from fedmvp.errors import UserError
from fedmvp.experiments.options import method_with_options
from fedmvp.experiments.results import NON_PRIVATE
from fedmvp.experiments.study import PACKAGED, DataSection, Study, require_data_below
from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.method import Reads
from fedmvp.model.task import Task, TaskClass

_TEST_SEED = 20261

_OWN_TEST = ("dirichlet", "patient", "site")
"""Rules whose sites differ in more than domains and classes: their own test images are held out of what they hold."""


@dataclass(frozen=True)
class SitePart:
    """What one site trains on.

    Attributes:
        name: the site.
        images: over the candidate classes.
        candidates: the classes that its training decides among.
    """

    name: str
    images: ImageCollection
    candidates: ClassSet


@dataclass(frozen=True)
class TestSet:
    """Images that no site trains on.

    Attributes:
        group: of what they tell: a target, "local", "base", "new", after the data set's name where there are several.
        site: the site whose own they are; "" for none.
        images: over the candidate classes.
        candidates: the classes that a decision is made among.
    """

    __test__ = False  # no test of pytest's

    group: str
    site: str
    images: ImageCollection
    candidates: ClassSet


@dataclass(frozen=True)
class Deal:
    """A study's data for one seed and one number of sites.

    Attributes:
        rule: how the images were dealt, in words.
        sites: the sites.
        trained: the classes that are trained.
        tests: what is measured on.
    """

    rule: str
    sites: tuple[SitePart, ...]
    trained: ClassSet
    tests: tuple[TestSet, ...]


@dataclass(frozen=True)
class OpenedData:
    """A data section's images and words."""

    name: str
    collection: ImageCollection
    classes: ClassSet


class Material:
    """The opened data of a study.

    Args:
        study: the study.
        root: the folder that --data names, or None.
        scratch: folder that packaged images are written to.

    Raises:
        UserError: data that cannot be used, before any training.
    """

    def __init__(self, study: Study, root: Path | None, scratch: Path) -> None:
        self._study = study
        self.data = open_section(study.data, root, scratch)
        self.joint = tuple(open_section(section, root, scratch) for section in study.joint)
        self.others = tuple(open_section(section, root, scratch) for section in study.others)
        for further in (self.others, self.trained_data):
            names = [opened.name for opened in further]
            if len(set(names)) != len(names):
                raise UserError(
                    "two data sets of [[others]], or of [data] and [[joint]], have one name",
                    remedy="put them into folders of different names",
                )
        if self.joint:
            self.data, *joint = map(_named_apart, self.trained_data)
            self.joint = tuple(joint)
        _require_one_beginning(study, [opened.classes for opened in (*self.trained_data, *self.others)])
        self._checkpoint = study.tower.checkpoint_below(root)
        for opened in self.trained_data:
            if opened.collection.multi_label and study.sites.trains_over == "own":
                raise UserError(
                    f'[sites] trains_over is "own", and images of {opened.name} have several labels: each is decided '
                    "by itself",
                    remedy='set it to "all"' if not study.joint else "leave that data set out",
                )
            require_sound(opened.collection)
        self.site_counts = study.sites.counts or (len(self.deal(0, study.study.seeds[0]).sites),)
        if self.site_counts[0] < 3:
            smaller = "lower [sites] classes_per_site" if study.sites.classes_per_site else "more domains"
            raise UserError(
                f"[sites] rule {study.sites.rule} gives {self.site_counts[0]} sites; a secure sum needs at least three",
                remedy=f"choose another rule, or {smaller}",
            )

    @property
    def trained_data(self) -> tuple[OpenedData, ...]:
        """The data sets that sites hold: [data], and [[joint]]."""
        return (self.data, *self.joint)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what the files say: images with labels and owners, sentences, the tower's own weights file."""
        facts = hashlib.sha256(__version__.encode())
        for opened in (*self.trained_data, *self.others):
            facts.update(repr(opened.classes).encode())
            for record in opened.collection.records:
                place = record.path.relative_to(opened.collection.source.parent).as_posix()
                facts.update(
                    repr((place, record.labels, record.site, record.patient, record.domain, record.split)).encode()
                )
        if self._checkpoint is not None:
            facts.update(file_digest(self._checkpoint))
        return facts.hexdigest()

    def deal(self, count: int, seed: int) -> Deal:
        """Deal the images over the sites.

        Args:
            count: sites, where the rule takes a number.
            seed: of everything that is drawn.

        Raises:
            UserError: the rule cannot be applied, or a site could not train.
        """
        if not self.joint:
            deal = self._deal(self.data, self._study.setting.base, count, seed)
        else:
            bases = (self._study.setting.base, *(section.base for section in self._study.joint))
            deal = _together(
                [self._deal(opened, base, 0, seed) for opened, base in zip(self.trained_data, bases, strict=True)]
            )
        _require_names(deal)
        _require_one_site(deal)
        _require_apart(deal)
        self._require_units(deal)
        return deal

    def _deal(self, opened: OpenedData, base: int, count: int, seed: int) -> Deal:
        """Deal one data set."""
        study = self._study
        prefix = f"{opened.name}-" if self.joint else ""
        pool, public = self._pool(opened.collection, base)
        pool = _few_of_each_class(pool, study.sites.shots, np.random.default_rng((seed, 2)))
        partition = self._partition(pool, count, seed)
        require_usable(partition, pool, minimum_records=study.sites.minimum)
        generator = np.random.default_rng((seed, 1))
        trained = opened.classes.subset(pool.classes)
        sites: list[SitePart] = []
        own: list[TestSet] = []
        for number, share in enumerate(partition.shares, start=1):
            name = _site_name(prefix + share.name, number)
            held = pool.take(share.indices)
            candidates = trained.subset(tuple(pool.classes[label] for label in share.classes))
            if public is None or study.sites.rule in _OWN_TEST:
                held, kept = _hold_out(held, study.setting.held_out, generator)
                if not len(kept):
                    raise UserError(
                        f"{opened.collection.source}: {name} has images of one patient alone, and none can be held out",
                        remedy="ask for fewer sites, or leave the site out",
                    )
            else:
                kept = _same_domain(public, held)
            own.append(TestSet("local", name, self._limited(kept.of_classes(candidates.names)), candidates))
            among = candidates if study.sites.trains_over == "own" else trained
            held = _sampled(held, study.sites.most_images, generator).of_classes(among.names)
            sites.append(SitePart(name, held, among))
        named = self._tests(opened, base, trained, public, own)
        tests = (*named, *own)
        if self.joint:
            tests = tuple(replace(test, group=f"{opened.name} {test.group}") for test in tests)
        return Deal(partition.rule, tuple(sites), trained, tests)

    def _require_units(self, deal: Deal) -> None:
        """Refuse what a site of the product refuses: a delta too large for its records, patients that nobody names."""
        privacy = self._study.privacy
        if all(mode == NON_PRIVATE for mode in privacy.modes):
            return
        for part in deal.sites:
            units = count_units(part.images, privacy.unit)
            if privacy.delta > largest_delta(units):
                raise UserError(
                    f"[privacy] delta = {privacy.delta:g} is above one over {MARGIN} times the {units} "
                    f"{privacy.unit}s of {part.name}",
                    remedy=f"set it to {largest_delta(units):.0e} or below",
                )

    def _pool(self, collection: ImageCollection, base: int) -> tuple[ImageCollection, ImageCollection | None]:
        """What is dealt, and the test part of the same classes and domains where the data have one."""
        setting = self._study.setting
        if setting.kind == "base-to-new":
            if not 2 <= base < len(collection.classes):
                raise UserError(
                    f"[setting] or [[joint]]: of {collection.source} base is {base}; the data have "
                    f"{len(collection.classes)} classes",
                    remedy="leave at least one class that nobody trains",
                )
            collection = collection.of_classes(collection.classes[:base])
        if setting.kind == "domains":
            collection = collection.only(domains=setting.sources)
        splits = {record.split for record in collection.records}
        if "train" in splits and "test" in splits:
            return collection.only(split="train"), collection.only(split="test")
        return collection, None

    def _partition(self, pool: ImageCollection, count: int, seed: int) -> Partition:
        sites = self._study.sites
        match sites.rule:
            case "class-blocks":
                if sites.classes_per_site:
                    return by_class_blocks(pool, classes_per_site=sites.classes_per_site)
                return by_class_blocks(pool, n_sites=count)
            case "dirichlet":
                return by_dirichlet(pool, n_sites=count, alpha=sites.alpha, seed=seed, minimum_records=sites.minimum)
            case "patient":
                return by_patient(pool, n_sites=count, seed=seed)
            case "domain":
                return by_domain(pool)
            case "site":
                return by_site(pool)

    def _tests(
        self,
        opened: OpenedData,
        base: int,
        trained: ClassSet,
        public: ImageCollection | None,
        own: Sequence[TestSet],
    ) -> tuple[TestSet, ...]:
        setting, whole = self._study.setting, opened.collection
        if setting.kind in ("domains", "cross-dataset"):
            targets = [
                TestSet(name, "", self._limited(whole.only(domains=[name])), trained) for name in setting.targets
            ]
            others = [
                TestSet(other.name, "", self._limited(_tested(other.collection)), other.classes)
                for other in self.others
            ]
            return (*targets, *others)
        everything = public if public is not None else _joined([item.images for item in own], trained.names)
        if setting.kind == "personalised":
            return (TestSet("all", "", self._limited(everything), trained),)
        unseen = whole.of_classes(whole.classes[base:])
        new = _tested(unseen)
        together = _tested(whole) if whole.multi_label else _joined([everything, new], whole.classes)
        return (
            TestSet("base", "", self._limited(everything), trained),
            TestSet("new", "", self._limited(new), opened.classes.subset(unseen.classes)),
            TestSet("seen and unseen", "", self._limited(together), opened.classes),
        )

    def _limited(self, images: ImageCollection) -> ImageCollection:
        return _sampled(images, self._study.setting.most_test_images, np.random.default_rng(_TEST_SEED))


def open_section(section: DataSection, root: Path | None, scratch: Path) -> OpenedData:
    """Read a data section.

    Raises:
        UserError: what its reader refuses, or a class without attributes.
    """
    if section.folder == PACKAGED:
        folder = scratch / "digits"
        write_class_folders(folder)
    else:
        folder = require_data_below(root, section)
    names = ",".join(section.classes) or None
    layout = section.layout or None
    collection = DataSource(folder, section.preset or None, layout, names, section.allow_incomplete).open()
    if section.preset:
        preset = load_preset(section.preset)
        texts = (preset.attributes, preset.template, preset.plain_template)
    else:
        texts = ("", "", "")
    attributes = section.attributes or texts[0]
    if root is not None and (root / attributes).is_file():
        attributes = str(root / attributes)
    if not attributes:
        raise UserError(
            f"[data] preset {section.preset!r} has no attribute file of its own",
            remedy="name one as [data] attributes; docs/experiments-data.md says how to write it",
        )
    described = attributes_from(attributes).for_classes(collection.classes)
    task = Task(tuple(TaskClass(item.name, item.attributes) for item in described), section.template or texts[1])
    return OpenedData(
        section.preset or Path(section.folder).name, collection, ClassSet(task, section.plain_template or texts[2])
    )


def _named_apart(opened: OpenedData) -> OpenedData:
    """A data set whose classes no other's can be taken for; sentences call them what they did."""
    classes = opened.classes
    apart = tuple(replace(item, name=f"{opened.name}: {item.name}", spoken=item.word) for item in classes.task.classes)
    collection = replace(opened.collection, classes=tuple(item.name for item in apart))
    return OpenedData(opened.name, collection, replace(classes, task=replace(classes.task, classes=apart)))


def _together(deals: Sequence[Deal]) -> Deal:
    """Several data sets in one federation; each site trains on the sentences of its own."""
    trained = deals[0].trained
    every = tuple(item for deal in deals for item in deal.trained.task.classes)
    tests = [test for deal in deals for test in deal.tests]
    return Deal(
        f"{len(deals)} data sets, {deals[0].rule} each",
        tuple(part for deal in deals for part in deal.sites),
        replace(trained, task=replace(trained.task, classes=every)),
        (*(test for test in tests if not test.site), *(test for test in tests if test.site)),
    )


def count_units(images: ImageCollection, unit: str) -> int:
    """Return how many units of privacy there are.

    Raises:
        UserError: patients are protected, and some image names none.
    """
    if unit != "patient":
        return len(images)
    if any(record.patient is None for record in images.records):
        raise UserError(
            f"{images.source}: some images have no patient, and [privacy] unit is patient",
            remedy="name the patient of every image (column patient), or set unit to record",
        )
    return len({record.patient for record in images.records})


def _require_names(deal: Deal) -> None:
    """Refuse what results could not tell apart: sites and test sets of one name."""
    names = [*(test.group for test in deal.tests if not test.site), *(part.name for part in deal.sites)]
    taken = {"local"}
    for name in names:
        if name in taken:
            raise UserError(
                f"two parts of the results would be called '{name}'",
                remedy="rename the site, domain or folder in the data; of a site's name the first 50 signs count, in "
                "lower case, with hyphens for signs that are no letters",
            )
        taken.add(name)


def _require_one_beginning(study: Study, data: Sequence[ClassSet]) -> None:
    """Refuse learned words before sentences that begin differently: the vector would not fit, or mean other words."""
    for entry in study.methods:
        method = method_with_options(entry)
        if Reads.TEXT not in method.reads:
            continue
        wording = getattr(method, "wording", Wording.TEMPLATE)
        beginnings = list(dict.fromkeys(classes.first_words(wording) for classes in data))
        if len(beginnings) > 1:
            raise UserError(
                f"method '{entry.name}' learns the words before a class name, and the sentences of these data sets "
                f"begin with '{beginnings[0]}' and '{beginnings[1]}'",
                remedy="give [data], [[joint]] and [[others]] one plain_template (template, where attributes "
                "classify), or leave the method out",
            )


def _require_one_site(deal: Deal) -> None:
    """Refuse an image or a patient at two sites: each ledger would charge a part of what is spent on it."""
    owners: dict[tuple[str, object], str] = {}
    for part in deal.sites:
        for record in part.images.records:
            whose: list[tuple[str, object]] = [("image", record.path.resolve())]
            if record.patient:
                whose.append(("patient", record.patient))
            for unit in whose:
                if owners.setdefault(unit, part.name) != part.name:
                    raise UserError(
                        f"{unit[0]} {unit[1]} is at {owners[unit]} and at {part.name}",
                        remedy="give each image and each patient to one site; name patients of data sets apart",
                    )


def _require_apart(deal: Deal) -> None:
    """Refuse a deal in which an image is trained on and measured on."""
    trained = {record.path for part in deal.sites for record in part.images.records}
    for test in deal.tests:
        both = next((record.path for record in test.images.records if record.path in trained), None)
        if both is not None:
            raise UserError(
                f"image {both} would be trained on and measured on ({test.group})",
                remedy="give the data a test part (column split), or name other data under [[others]]",
            )


def _site_name(share: str, number: int) -> str:
    """A share's name as a roster takes it: lower-case letters, digits, hyphens."""
    plain = re.sub(r"[^a-z0-9]+", "-", share.lower()).strip("-")[:50]
    return plain or f"site-{number}"


def _hold_out(
    held: ImageCollection, share: float, generator: np.random.Generator
) -> tuple[ImageCollection, ImageCollection]:
    """Part a site's images, patients whole: what it trains on, and what it is measured on."""
    units = list(dict.fromkeys(_unit(record, at) for at, record in enumerate(held.records)))
    n_tests = min(max(1, round(share * len(units))), len(units) - 1)
    chosen = {units[at] for at in generator.permutation(len(units))[:n_tests]}
    tests = [at for at, record in enumerate(held.records) if _unit(record, at) in chosen]
    kept = set(tests)
    return held.take(at for at in range(len(held)) if at not in kept), held.take(tests)


def _unit(record: ImageRecord, at: int) -> str | int:
    return at if record.patient is None else record.patient


def _same_domain(public: ImageCollection, held: ImageCollection) -> ImageCollection:
    domains = {record.domain for record in held.records} - {None}
    return public if not domains else public.only(domains=[name for name in domains if name is not None])


def _tested(collection: ImageCollection) -> ImageCollection:
    """The test part, or everything where there is none."""
    return collection.only(split="test") if any(r.split == "test" for r in collection.records) else collection


def _sampled(images: ImageCollection, most: int, generator: np.random.Generator) -> ImageCollection:
    if not most or len(images) <= most:
        return images
    return images.take(int(at) for at in np.sort(generator.permutation(len(images))[:most]))


def _few_of_each_class(pool: ImageCollection, shots: int, generator: np.random.Generator) -> ImageCollection:
    """A seeded sample of so many images of each class, by an image's first label; all of them for 0."""
    if not shots:
        return pool
    taken: list[int] = []
    for label in range(len(pool.classes)):
        of_class = [at for at, record in enumerate(pool.records) if record.labels[:1] == (label,)]
        taken += [of_class[at] for at in generator.permutation(len(of_class))[:shots]]
    return pool.take(sorted(taken))


def _joined(parts: Sequence[ImageCollection], names: Sequence[str]) -> ImageCollection:
    return merge([_widened(part, names) for part in parts], parts[0].source)


def _widened(part: ImageCollection, names: Sequence[str]) -> ImageCollection:
    """The same images numbered among more classes."""
    if part.classes == tuple(names):
        return part
    new = {at: names.index(name) for at, name in enumerate(part.classes)}
    records = tuple(
        ImageRecord(r.path, tuple(sorted(new[label] for label in r.labels)), r.site, r.patient, r.domain, r.split)
        for r in part.records
    )
    return ImageCollection(records, tuple(names), part.source, part.multi_label)
