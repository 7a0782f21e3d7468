"""The classes that a decision is made among, in words, and the two ways of saying them to the text tower."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fedmvp.errors import UserError
from fedmvp.model.task import Task


class Wording(StrEnum):
    """Which sentences stand for a class."""

    TEMPLATE = "template"
    """One sentence with the name of the class."""
    ATTRIBUTES = "attributes"
    """One sentence for each attribute of the class; their features are averaged."""


@dataclass(frozen=True)
class ClassSet:
    """Classes in the order of labels and logits.

    Attributes:
        task: names, attributes, and the sentence of the attributes.
        template: the sentence without an attribute, with `{name}`.
    """

    task: Task
    template: str = "a photo of a {name}"

    def __post_init__(self) -> None:
        if self.template.count("{name}") != 1:
            raise UserError(
                f"the template '{self.template}' must hold {{name}} once", remedy='write it as "a photo of a {name}"'
            )

    def __len__(self) -> int:
        return len(self.task.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.task.class_names

    def sentences(self, wording: Wording) -> tuple[tuple[str, ...], ...]:
        """Return the sentences of each class."""
        if wording is Wording.TEMPLATE:
            return tuple((self.template.replace("{name}", item.word),) for item in self.task.classes)
        return tuple(
            tuple(self.task.template.format(name=item.word, attribute=attribute) for attribute in item.attributes)
            for item in self.task.classes
        )

    def first_words(self, wording: Wording) -> str:
        """Return what every sentence starts with, up to the name of the class."""
        template = self.template if wording is Wording.TEMPLATE else self.task.template
        return template.split("{", maxsplit=1)[0].strip()

    def subset(self, names: tuple[str, ...]) -> ClassSet:
        """Return some of the classes, in the order of the names.

        Raises:
            UserError: a name that is not among the classes.
        """
        by_name = {item.name: item for item in self.task.classes}
        if missing := [name for name in names if name not in by_name]:
            raise UserError(
                f"'{missing[0]}' is not among the classes {', '.join(self.names)}",
                remedy="name classes as the study names them",
            )
        return ClassSet(Task(tuple(by_name[name] for name in names), self.task.template), self.template)
