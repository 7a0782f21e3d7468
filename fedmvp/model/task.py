"""The classes of a study in words, as the model needs them."""

from __future__ import annotations

from dataclasses import dataclass

from fedmvp.errors import UserError


@dataclass(frozen=True)
class TaskClass:
    """One class: its name and what is true of it, in a few words each.

    Attributes:
        name: unlike every other class's.
        attributes: what is true of it.
        spoken: what sentences call it, where that is not the name.
    """

    name: str
    attributes: tuple[str, ...]
    spoken: str = ""

    @property
    def word(self) -> str:
        """What sentences call it."""
        return self.spoken or self.name


@dataclass(frozen=True)
class Task:
    """A single-label task.

    Attributes:
        classes: the classes, in the classifier's order; they may have different numbers of attributes.
        template: sentence with `{name}` and `{attribute}`.
    """

    classes: tuple[TaskClass, ...]
    template: str = "a photo of a {name}, which has {attribute}"

    def __post_init__(self) -> None:
        if not self.classes or any(not item.attributes for item in self.classes):
            raise UserError(
                "a task needs classes, and each class at least one attribute", remedy="complete [task] in the policy"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the classifier's order."""
        return tuple(item.name for item in self.classes)

    @property
    def attributes(self) -> tuple[str, ...]:
        """All attributes, class after class; (n_attributes,)."""
        return tuple(attribute for item in self.classes for attribute in item.attributes)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The template filled with every attribute, in the order of `attributes`."""
        return tuple(
            self.template.format(name=item.word, attribute=attribute)
            for item in self.classes
            for attribute in item.attributes
        )
