"""STUDY.toml: what is swept, on which data, with which settings. Unknown keys are refused."""

from __future__ import annotations

import socket
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedmvp.errors import UserError
from fedmvp.experiments.results import NON_PRIVATE
from fedmvp.study.documents import Section, parse_toml, read_document, validate

Mode = Literal["non-private", "record-local", "record-distributed", "silo-distributed"]
Texts = Annotated[tuple[str, ...], Field(strict=False)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

PACKAGED = "packaged"
"""Data folder of a study that needs none: the digits that the demo installs."""


class StudySection(Section):
    """[study]: its name and its repetitions."""

    name: Identifier = Field(description="names the run folder and every figure")
    title: str = Field(min_length=1, max_length=200, description="one line for people")
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = Field(description="one run a seed")

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError("seeds are different whole numbers of at least 0")
        return seeds


class DataSection(Section):
    """[data] and [[others]]: images and how they are read."""

    folder: str = Field(description='below --data; "packaged" for the digits of the demo')
    preset: str = Field(default="", description="a data set known by name")
    layout: Literal["", "class-folders", "domain-folders", "split-folders", "manifest"] = Field(
        default="", description="instead of a preset"
    )
    classes: Texts = Field(default=(), description="class names in order; needed for a manifest")
    attributes: str = Field(default="", description="attribute file, or the name of a packaged one; the preset's")
    template: str = Field(default="", description="sentence with {name} and {attribute}; the preset's")
    plain_template: str = Field(default="", description="sentence with {name}; the preset's")
    allow_incomplete: bool = Field(default=False, description="use the images that are there")

    @model_validator(mode="after")
    def _one_way_to_read(self) -> Self:
        if bool(self.preset) == bool(self.layout):
            raise ValueError("give either preset or layout")
        if self.layout and not (self.attributes and self.template and self.plain_template):
            raise ValueError("a layout needs attributes, template and plain_template: no preset says them")
        if self.layout == "manifest" and not self.classes:
            raise ValueError("a manifest needs classes, in the order of the classifier")
        return self


class JointSection(DataSection):
    """[[joint]]: a further data set that is trained and measured with the one of [data], as the paper does."""

    base: int = Field(ge=2, description="how many of its classes, from the first, are trained")


class SettingSection(Section):
    """[setting]: what is trained on and what is measured."""

    kind: Literal["domains", "base-to-new", "personalised", "cross-dataset"]
    sources: Texts = Field(default=(), description="domains that the sites hold; domains alone")
    targets: Texts = Field(default=(), description="domains that nobody holds; domains alone")
    base: int = Field(default=0, ge=0, description="how many classes, from the first, are trained; base-to-new alone")
    held_out: float = Field(default=0.2, gt=0, lt=1, description="of a site's images, where the data have no test")
    most_test_images: int = Field(default=2000, ge=1, description="of each target or test set; a seeded sample")

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> Self:
        if self.kind == "domains" and not self.sources:
            raise ValueError("domains need sources, and targets or [[others]]")
        if self.kind != "domains" and (self.sources or self.targets):
            raise ValueError(f"{self.kind} takes no sources and targets; they belong to domains")
        if set(self.sources) & set(self.targets):
            raise ValueError("a domain is either a source or a target")
        if (self.kind == "base-to-new") != (self.base > 0):
            raise ValueError("base-to-new, and it alone, needs base: the number of trained classes")
        return self


class SitesSection(Section):
    """[sites]: who holds what."""

    rule: Literal["domain", "class-blocks", "dirichlet", "site", "patient"]
    counts: Annotated[tuple[int, ...], Field(strict=False)] = Field(default=(), description="sites; one sweep each")
    classes_per_site: int = Field(default=0, ge=0, description="length of a class block, instead of counts")
    alpha: Positive = Field(default=0.5, description="of the Dirichlet distribution")
    minimum: int = Field(default=20, ge=1, description="fewest images of a site")
    shots: int = Field(default=0, ge=0, description="images of each class before dealing, a seeded sample; 0 takes all")
    most_images: int = Field(default=0, ge=0, description="of a site, a seeded sample; 0 takes all")
    trains_over: Literal["all", "own"] = Field(
        default="all", description="the classes a site decides among in training: all that are trained, or its own"
    )

    @model_validator(mode="after")
    def _counts_where_chosen(self) -> Self:
        chosen = self.rule in ("class-blocks", "dirichlet", "patient")
        if self.classes_per_site and (self.rule != "class-blocks" or self.counts):
            raise ValueError("classes_per_site is the length of class-blocks, in place of counts")
        if chosen != bool(self.counts or self.classes_per_site):
            raise ValueError(f"rule {self.rule} {'needs counts' if chosen else 'takes no counts: the data decide'}")
        if self.trains_over == "own" and self.rule != "class-blocks":
            raise ValueError(
                'trains_over "own" needs rule class-blocks: elsewhere the classes of a site follow from its records, '
                "and what depends on one record must not change the loss of others"
            )
        if any(count < 3 for count in self.counts):
            raise ValueError("a secure sum needs at least three sites")
        return self


class TowerSection(Section):
    """[tower]: the frozen CLIP."""

    name: str = Field(description="an embedded model, or an open_clip architecture")
    pretrained: str = Field(default="embedded", description='"embedded", or an open_clip tag')
    checkpoint: str = Field(default="", description="file with weights, below --data")

    def checkpoint_below(self, root: Path | None) -> Path | None:
        """Return the file with the weights, or None where the name brings them."""
        return (root or Path()) / self.checkpoint if self.checkpoint else None


class TrainingSection(Section):
    """[training]: how every method trains, where nothing else is said."""

    rounds: int = Field(ge=1, le=100_000)
    local_steps: int = Field(ge=1, description="steps a round; one in record-distributed, whatever is said")
    learning_rate: Positive
    momentum: float = Field(default=0.0, ge=0, lt=1)
    sample_rate: float = Field(gt=0, le=1)
    expected_batch_size: float = Field(default=0.0, ge=0, description="0: sample_rate times the mean site's images")
    max_grad_norm: Positive = 1.0
    value_range: Positive = 8.0
    server_optimizer: Literal["sgd", "adam"] = "sgd"
    server_learning_rate: Positive = 1.0
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.99, ge=0, lt=1)
    adam_epsilon: Positive = 1e-8


class TrainingChange(Section):
    """Some keys of [training], for a mode or for a method."""

    rounds: int | None = Field(default=None, ge=1, le=100_000)
    local_steps: int | None = Field(default=None, ge=1)
    learning_rate: Positive | None = None
    momentum: float | None = Field(default=None, ge=0, lt=1)
    sample_rate: float | None = Field(default=None, gt=0, le=1)
    expected_batch_size: float | None = Field(default=None, ge=0)
    max_grad_norm: Positive | None = None
    value_range: Positive | None = None
    server_optimizer: Literal["sgd", "adam"] | None = None
    server_learning_rate: Positive | None = None
    adam_beta1: float | None = Field(default=None, ge=0, lt=1)
    adam_beta2: float | None = Field(default=None, ge=0, lt=1)
    adam_epsilon: Positive | None = None

    def apply(self, settings: TrainingSection) -> TrainingSection:
        """Return settings with the keys that are given here."""
        return settings.model_copy(update=self.model_dump(exclude_none=True))


class MethodEntry(Section):
    """[[methods]]: one row of the comparison."""

    name: Identifier
    method: str = Field(default="", description="a name of fedmvp.methods.table; the entry's own name by default")
    options: dict[str, Any] = Field(default_factory=dict, description="hyper-parameters of the method")
    sizes: Annotated[tuple[dict[str, int], ...], Field(strict=False)] = Field(
        default=(), description="options that make the module larger or smaller; one sweep each"
    )
    training: TrainingChange = TrainingChange()
    modes: dict[Mode, TrainingChange] = Field(default_factory=dict, description="further changes in one mode")


class PrivacySection(Section):
    """[privacy]: modes and budgets."""

    modes: Annotated[tuple[Mode, ...], Field(strict=False, min_length=1)]
    epsilons: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    delta: float = Field(gt=0, lt=1e-2)
    unit: Literal["record", "patient"] = "record"
    secure_sum: bool = Field(default=True, description="false adds up in the clear: faster, and another system")

    @model_validator(mode="after")
    def _budgets_where_private(self) -> Self:
        if any(mode != NON_PRIVATE for mode in self.modes) and not self.epsilons:
            raise ValueError("private modes need epsilons")
        return self


class SettingsFrom(Section):
    """[settings_from]: where the hyper-parameters come from, which every report says."""

    kind: Literal["public", "private-uncharged", "defaults"]
    note: str = Field(min_length=1, max_length=2000)


class Study(Section):
    """A validated STUDY.toml."""

    study: StudySection
    data: DataSection
    others: Annotated[tuple[DataSection, ...], Field(strict=False)] = Field(
        default=(), description="further data sets to be measured on, each with its own classes"
    )
    joint: Annotated[tuple[JointSection, ...], Field(strict=False)] = Field(
        default=(), description="further data sets that are trained and measured too, each at sites of its own"
    )
    setting: SettingSection
    sites: SitesSection
    tower: TowerSection
    training: TrainingSection
    modes: dict[Mode, TrainingChange] = Field(default_factory=dict, description="changes in one mode")
    methods: Annotated[tuple[MethodEntry, ...], Field(strict=False, min_length=1)]
    privacy: PrivacySection
    settings_from: SettingsFrom

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [entry.name for entry in self.methods]
        if len(set(names)) != len(names):
            raise ValueError("two methods have one name")
        if self.setting.kind == "domains" and not (self.setting.targets or self.others):
            raise ValueError("domains need targets or [[others]]")
        if (self.setting.kind == "cross-dataset") > bool(self.others):
            raise ValueError("cross-dataset needs [[others]]: the data sets that are measured")
        if self.others and self.setting.kind not in ("domains", "cross-dataset"):
            raise ValueError(f"{self.setting.kind} takes no [[others]]")
        own = self.sites.classes_per_site and self.sites.trains_over == "own"
        if self.joint and not (self.setting.kind == "base-to-new" and own):
            raise ValueError(
                '[[joint]] needs base-to-new, classes_per_site and trains_over "own": sites tell own classes'
            )
        if self.sites.rule == "class-blocks" and self.setting.kind == "domains":
            raise ValueError("class blocks belong to base-to-new or personalised")
        return self


def load_study(path: Path, changes: Sequence[str] = ()) -> Study:
    """Read a study from its file.

    Args:
        path: the file.
        changes: `table.key=value` each, a TOML value, in place of what the file says.

    Raises:
        UserError: missing, a change that is none, or a mistake, with its line.
    """
    remedy = "name a STUDY.toml; docs/experiments.md shows one, and studies/ holds several"
    document = read_document(path, what="study", remedy=remedy)
    values = parse_toml(document, source=str(path))
    origins: dict[tuple[str, ...], str] = {}
    for change in changes:
        table, key, value = _change(change)
        if not isinstance(values.setdefault(table, {}), dict):
            raise UserError(f"--set {change}: [{table}] is no table of keys", remedy="change the file instead")
        values[table][key] = value
        origins[table, key] = "--set"
    return validate(Study, values, source=str(path), text=document.decode("utf-8", "replace"), origins=origins)


def _change(change: str) -> tuple[str, str, Any]:
    name, found, value = change.partition("=")
    table, dot, key = name.strip().partition(".")
    try:
        if not (found and dot and key):
            raise ValueError
        return table, key, tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        raise UserError(
            f"--set {change!r} is no change of a key",
            remedy="""write table.key=value with a TOML value, such as --set 'data.preset="dtd"'""",
        ) from None


def require_data_below(root: Path | None, section: DataSection) -> Path:
    """Return the folder or table of a data section.

    Raises:
        UserError: it lies below --data, and none was given.
    """
    if root is None:
        raise UserError(
            f"[data] folder = {section.folder!r} is looked for below a data folder, and none was given",
            remedy="pass --data FOLDER",
        )
    return root / section.folder


def require_on_this_machine(paths: Iterable[Path]) -> None:
    """Refuse to go on in a worker that does not see a study's data.

    Args:
        paths: folders or files that will be read.

    Raises:
        UserError: one of them does not exist here.
    """
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{path} does not exist on {socket.gethostname()}, where a part of the study was to run",
                remedy="make the folder of --data readable at the same path on every node",
            )
