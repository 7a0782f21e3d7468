"""The frozen tower as the methods see it: what it says of classes is computed once for each class set."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.model.attributes import AttributeBank, build_attribute_bank
from fedmvp.model.backbone import Backbone
from fedmvp.model.probe import CandidateProbe, synthetic_centre
from fedmvp.model.prompted_text import PromptedText


class FrozenTower:
    """A backbone, and the text side of every class set it was asked about.

    Args:
        backbone: the frozen CLIP.
        cache_dir: where attribute features are kept on disk; they are public. None keeps nothing there.
    """

    def __init__(self, backbone: Backbone, *, cache_dir: Path | None = None) -> None:
        self.backbone = backbone
        self._cache_dir = cache_dir
        self._banks: dict[ClassSet, AttributeBank] = {}
        self._templates: dict[ClassSet, Tensor] = {}
        self._centre: Tensor | None = None

    def __repr__(self) -> str:
        return f"FrozenTower({self.backbone.name})"

    def bank(self, classes: ClassSet) -> AttributeBank:
        """Return attribute features and the classifier of the attribute sentences."""
        if classes not in self._banks:
            bank = build_attribute_bank(self.backbone, classes.task, cache_dir=self._cache_dir)
            self._banks[classes] = bank.to(self.backbone.device)
        return self._banks[classes]

    def classifier(self, classes: ClassSet, wording: Wording) -> Tensor:
        """Return the class rows of zero-shot CLIP (n_classes, joint_width)."""
        if wording is Wording.ATTRIBUTES:
            return self.bank(classes).classifier
        if classes not in self._templates:
            sentences = [sentence for (sentence,) in classes.sentences(Wording.TEMPLATE)]
            self._templates[classes] = self.backbone.encode_sentences(sentences)
        return self._templates[classes]

    def prompted_text(self, classes: ClassSet, wording: Wording) -> PromptedText:
        """Return the sentences of a class set with first words that can be replaced."""
        return PromptedText(self.backbone, classes.sentences(wording), classes.first_words(wording))

    def centre(self) -> Tensor:
        """Return the mean feature of synthetic images (joint_width,), which costs no privacy."""
        if self._centre is None:
            self._centre = synthetic_centre(self.backbone)
        return self._centre

    def probe(self, candidates: ClassSet, trained: ClassSet, *, bias: bool = True) -> CandidateProbe:
        """Return an untrained probe with rows for the trained classes, asked about candidates."""
        return CandidateProbe(self.backbone, candidates.names, trained.names, bias=bias, centre=self.centre())

    @torch.no_grad()
    def zero_shot(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return `zero_shot`, the normalised feature (b, joint_width) of normalised pixels."""
        return {"zero_shot": self.backbone.encode_images(pixels)}
