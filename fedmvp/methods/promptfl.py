"""PromptFL: trained vectors in place of the first words of every sentence, the same for all classes (Guo et al. 2023).

The vectors are the template's own words plus what is trained, which starts at zero, so the untrained model is zero-shot
CLIP. The gradients of samples through the shared text tower are those of `fedmvp.model.prompted_text`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.method import Features, MethodModel, Reads
from fedmvp.methods.per_sample_text import text_logits
from fedmvp.methods.tower import FrozenTower
from fedmvp.model.learned_tokens import LearnedTokens


@dataclass(frozen=True)
class PromptFl:
    """One context for all classes.

    Attributes:
        wording: which sentences the context stands before; the published method uses the template.
    """

    wording: Wording = Wording.TEMPLATE

    reads = frozenset({Reads.FEATURE, Reads.TEXT})
    names_classes = True

    @property
    def neutral_start(self) -> Wording:
        """The words of the template."""
        return self.wording

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the module; its parameters depend on the first words alone, not on the classes."""
        del trained
        return _PromptFlModel(tower, candidates, self.wording)


class _PromptFlModel(MethodModel):
    def __init__(self, tower: FrozenTower, candidates: ClassSet, wording: Wording) -> None:
        super().__init__(tower, candidates)
        self._text = tower.prompted_text(candidates, wording)
        self.context = LearnedTokens(torch.zeros(self._text.n_words, self._text.text_width, device=self.device))

    def forward(self, features: Features) -> Tensor:
        """Return class logits (b, n_classes)."""
        feature = features["zero_shot"]
        words = self._text.moved_words(self.context(feature))
        return text_logits(self._text, words, feature, trained=self.context, scale=self.tower.backbone.logit_scale)
