"""FedTPG-style prompts: a small network makes the first words of all sentences from the names of the classes.

After Qiu et al. 2024: trained queries attend to the frozen text features of the class names, and what they find becomes
the context. Here through a bottleneck, without a feed-forward part, and added to the template's own words by an output
that starts at zero: the untrained model is zero-shot CLIP, and noise has fewer parameters to fall on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.method import Features, MethodModel, Reads
from fedmvp.methods.per_sample_text import text_logits
from fedmvp.methods.tower import FrozenTower
from fedmvp.model.attention import attend
from fedmvp.model.initial import orthogonal
from fedmvp.model.learned_tokens import LearnedTokens
from fedmvp.model.shared_linear import SharedLinear


@dataclass(frozen=True)
class FedTpg:
    """Context that depends on the class set.

    Attributes:
        width: of the bottleneck; a multiple of `n_heads`.
        n_heads: of the attention.
        wording: which sentences the context stands before.
        initial_seed: seed of the public start.
    """

    width: int = 32
    n_heads: int = 4
    wording: Wording = Wording.TEMPLATE
    initial_seed: int = 0

    reads = frozenset({Reads.FEATURE, Reads.TEXT})
    names_classes = True

    def __post_init__(self) -> None:
        if self.width < 1 or self.n_heads < 1 or self.width % self.n_heads:
            raise ValueError(f"the width {self.width} must be a multiple of n_heads {self.n_heads}")

    @property
    def neutral_start(self) -> Wording:
        """The words of the template."""
        return self.wording

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the module; its network reads the names of the candidates."""
        del trained
        return _FedTpgModel(tower, candidates, self)


class _FedTpgModel(MethodModel):
    def __init__(self, tower: FrozenTower, candidates: ClassSet, method: FedTpg) -> None:
        super().__init__(tower, candidates)
        self._text = text = tower.prompted_text(candidates, method.wording)
        self._n_heads = method.n_heads
        names = tower.classifier(candidates, Wording.TEMPLATE)
        self._names = names * names.shape[-1] ** 0.5  # unit rms instead of norm one
        seed, joint_width, width = method.initial_seed, tower.backbone.joint_width, method.width
        queries = torch.from_numpy(orthogonal((text.n_words, width), "queries", seed)) * width**0.5  # unit rms
        self.queries = LearnedTokens(queries)
        self.key = SharedLinear(joint_width, width, bias=False)
        self.value = SharedLinear(joint_width, width, bias=False)
        self.output = nn.Linear(width, text.text_width, bias=False)
        with torch.no_grad():
            self.key.weight.copy_(torch.from_numpy(orthogonal((width, joint_width), "key", seed)))
            self.value.weight.copy_(torch.from_numpy(orthogonal((width, joint_width), "value", seed)))
            self.output.weight.zero_()
        self.to(self.device)

    def forward(self, features: Features) -> Tensor:
        """Return class logits (b, n_classes)."""
        feature = features["zero_shot"]
        key, value = self.key(self._names, feature), self.value(self._names, feature)
        found = self.output(attend(self.queries(feature), key, value, self._n_heads))
        words = self._text.moved_words(found)  # (b, n_words, text_width), the same for every sample
        return text_logits(self._text, words, feature, trained=self.output, scale=self.tower.backbone.logit_scale)
