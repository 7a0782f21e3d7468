"""Presets: what is known of a public data set before one has it.

A preset is a TOML file of the package: folders, classes, prompt templates, domains, official splits, how many images
there must be. Nothing is downloaded; `fedmvp.data.opening` reads a folder by its preset.
"""

from __future__ import annotations

import string
from importlib.resources import files
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedmvp.data.layouts import ClassList
from fedmvp.data.records import SPLITS
from fedmvp.errors import UserError
from fedmvp.study.documents import Section, nearest, parse_toml, validate

_PACKAGED = files("fedmvp.data") / "presets"

Name = Annotated[str, Field(min_length=1, max_length=200)]
Texts = Annotated[tuple[Name, ...], Field(strict=False)]
Layout = Literal[
    "class-folders",
    "split-folders",
    "domain-folders",
    "listed",
    "flowers",
    "cars",
    "voc",
    "coco",
    "nus-wide",
    "indicator-tables",
    "chest-xray",
]


class PresetClass(Section):
    """A class: what it is called, and its folder or key in the data set's files where that differs."""

    name: Name
    folder: str = ""


class PresetDomain(Section):
    """A domain: its folder or key, what it is called, and how many images it must have."""

    folder: Name
    name: Name
    images: int = Field(ge=1)


class Preset(Section):
    """A data set that is known by name.

    Attributes:
        name: its name on the command line and in studies.
        title: its name for people.
        citation: who made it.
        obtain: what to do where files are missing.
        task: whether an image has one class or a set.
        layout: how its folder is read.
        images: folder of the images below the data set's folder; "" is that folder.
        needs: further files and folders, relative; a pattern such as `Data_Entry_*.csv` needs one match.
        template: sentence with {name} and {attribute}.
        plain_template: sentence with {name} alone.
        attributes: name of an attribute file of the package, or "".
        n_classes: classes there must be.
        classes: the classes in order; empty where `class_file`, the folders or the tables name them.
        class_file: file that names them.
        class_lines: what a line of it holds: a name, a folder and a name, or a name whose folder is its line's number.
        subset: whether the class file names more classes than the data set has folders.
        domains: the domains in order, with their images.
        splits: folder or file of each official split; `{domain}` stands for each domain.
        list_lines: what a line of a split's list holds.
        split_file: the file with the split that few-shot papers share.
        fractions: shares of train and val where no split is given; the rest is test.
        val_from_train: share of train that becomes val where the official splits have none.
        expected: images of each split, or of "all".
        ignored: folders that are not part of the data set.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: Name
    citation: Name
    obtain: Annotated[str, Field(min_length=1, max_length=1000)]
    task: Literal["single-label", "multi-label"] = "single-label"
    layout: Layout
    images: str = ""
    needs: Texts = ()
    template: Name
    plain_template: Name
    attributes: str = ""
    n_classes: int = Field(ge=2)
    classes: Annotated[tuple[PresetClass, ...], Field(strict=False)] = ()
    class_file: str = ""
    class_lines: Literal["name", "folder-name", "numbered", "sun397", "ucf101"] = "name"
    subset: bool = False
    domains: Annotated[tuple[PresetDomain, ...], Field(strict=False)] = ()
    splits: dict[str, str] = Field(default_factory=dict)
    list_lines: Literal["", "aircraft", "pets", "sun397", "ucf101", "domainnet"] = ""
    split_file: str = ""
    fractions: Annotated[tuple[float, ...], Field(strict=False, max_length=2)] = ()
    val_from_train: float = Field(default=0.0, ge=0, lt=1)
    expected: dict[str, int] = Field(default_factory=dict)
    ignored: Texts = ()

    @property
    def multi_label(self) -> bool:
        """Whether an image has a set of classes."""
        return self.task == "multi-label"

    @property
    def class_list(self) -> ClassList | None:
        """The classes in order, or None where the data set's own files name them."""
        if not self.classes:
            return None
        return ClassList.of([item.name for item in self.classes], [item.folder or item.name for item in self.classes])

    @field_validator("template", "plain_template")
    @classmethod
    def _has_its_places(cls, template: str) -> str:
        places = {place for _, place, _, _ in string.Formatter().parse(template) if place is not None}
        if not {"name"} <= places <= {"name", "attribute"}:
            raise ValueError("a template names {name}, and {attribute} where it takes one")
        return template

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.classes and len(self.classes) != self.n_classes:
            raise ValueError(f"n_classes is {self.n_classes}, but {len(self.classes)} classes are listed")
        if "{attribute}" not in self.template or "{attribute}" in self.plain_template:
            raise ValueError("template takes {attribute}, plain_template does not")
        if unknown := (set(self.splits) - set(SPLITS)) | (set(self.expected) - {*SPLITS, "all"}):
            raise ValueError(f"{sorted(unknown)[0]!r} is no split; use {', '.join(SPLITS)}")
        return self


def preset_names() -> tuple[str, ...]:
    """Names of all presets."""
    return tuple(sorted(item.name.removesuffix(".toml") for item in _PACKAGED.iterdir() if item.name.endswith(".toml")))


def load_preset(name: str) -> Preset:
    """Return a preset; UserError when there is none of this name."""
    if name not in preset_names():
        near = nearest(name, preset_names())
        raise UserError(
            f"there is no data set preset '{name}'",
            remedy=f"{f'did you mean {near}? ' if near else ''}fedmvp-experiment presets lists them",
        )
    document = (_PACKAGED / f"{name}.toml").read_bytes()
    return validate(Preset, parse_toml(document, source=f"{name}.toml"), source=f"{name}.toml", text=document.decode())
