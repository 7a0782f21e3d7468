"""What a person means by DATA: a preset's folder, a folder of some layout, or a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmvp.data.layouts import ClassList, class_folders, domain_folders, split_folders, subfolders
from fedmvp.data.manifests import read_manifest
from fedmvp.data.opening import open_preset
from fedmvp.data.presets import load_preset, preset_names
from fedmvp.data.records import SPLITS, ImageCollection
from fedmvp.errors import ExitCode, UserError


@dataclass(frozen=True)
class DataSource:
    """DATA and how it is read.

    Attributes:
        path: a folder or a table.
        preset: name of a preset, or None.
        layout: a layout, or None for the preset's.
        classes: where the order of the classes comes from; see :func:`class_names`.
        allow_incomplete: whether a preset may have too few images.
    """

    path: Path
    preset: str | None = None
    layout: str | None = None
    classes: str | None = None
    allow_incomplete: bool = False

    def open(self) -> ImageCollection:
        """Read it.

        Raises:
            UserError: neither or both of preset and layout, or what the reader refuses.
        """
        if (self.preset is None) == (self.layout is None):
            raise UserError(
                "DATA needs either --preset or --layout",
                remedy="fedmvp-experiment presets lists the data sets that are known by name",
                exit_code=ExitCode.USAGE,
            )
        if self.preset is not None:
            read = open_preset(load_preset(self.preset), self.path, allow_incomplete=self.allow_incomplete)
            return read if self.classes is None else read.of_classes(class_names(self.classes))
        given = None if self.classes is None else ClassList.of(class_names(self.classes))
        if self.layout == "manifest":
            if given is None:
                raise UserError(
                    "a manifest needs --classes",
                    remedy="name the classes in the order of the classifier",
                    exit_code=ExitCode.USAGE,
                )
            return read_manifest(self.path, given.names)
        if self.layout == "domain-folders":
            return domain_folders(self.path, given)
        if self.layout == "split-folders":
            found = [name for name in SPLITS if name in subfolders(self.path)]
            if not found:
                raise UserError(
                    f"{self.path} holds none of the folders {', '.join(SPLITS)}", remedy="choose another layout"
                )
            return split_folders(self.path, {name: name for name in found}, given)
        return class_folders(self.path, given)


def class_names(text: str) -> tuple[str, ...]:
    """Return the class names that a --classes option means.

    Args:
        text: a preset whose classes are known, a text file with one class a line, or names separated by commas.

    Raises:
        UserError: a preset that reads its classes from its own files, or an empty list.
    """
    if text in preset_names():
        known = load_preset(text).class_list
        if known is None:
            raise UserError(
                f"preset {text} reads its classes from the data set's own files",
                remedy="write them into a text file, one a line, and name it",
            )
        return known.names
    path = Path(text)
    if path.suffix == ".txt":
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise UserError(f"class list {path} cannot be read", remedy="give a UTF-8 text file") from failure
        names = content.splitlines()
    else:
        names = text.split(",")
    found = tuple(name.strip() for name in names if name.strip())
    if not found:
        raise UserError(f"--classes {text!r} names no class", remedy="give a preset, a .txt file, or a,b,c")
    return found
