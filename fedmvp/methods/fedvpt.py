"""FedVPT: visual prompts that are trained themselves, the same for every image (Jia et al. 2022, federated).

They join the tower where FedMVP's prompts would, at the input as published (the shallow kind) or before the last block.
What FedMVP has beyond this is that its prompts depend on the image and on the attributes. The untrained model is
zero-shot CLIP by the same anchor as FedMVP's: frozen feature + prompted - prompted at the public start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.method import Features, MethodModel, Reads
from fedmvp.methods.tower import FrozenTower
from fedmvp.model.initial import orthogonal
from fedmvp.model.last_block import TAIL_NAMES, LastBlock
from fedmvp.model.learned_tokens import LearnedTokens
from fedmvp.model.prompt_config import Injection


@dataclass(frozen=True)
class FedVpt:
    """Trained prompt tokens.

    Attributes:
        n_prompts: how many, at least 1.
        injection: where they join.
        wording: which sentences classify.
        initial_seed: seed of the public start.
    """

    n_prompts: int = 16
    injection: Injection = Injection.LAST_BLOCK
    wording: Wording = Wording.TEMPLATE
    initial_seed: int = 0

    names_classes = True

    @property
    def reads(self) -> frozenset[Reads]:
        """By the place where prompts are put in."""
        return frozenset({Reads.FEATURE, Reads.TOKENS if self.injection is Injection.INPUT else Reads.TAIL})

    @property
    def neutral_start(self) -> Wording:
        """The classifier's sentences."""
        return self.wording

    def build(self, tower: FrozenTower, candidates: ClassSet, *, trained: ClassSet | None = None) -> MethodModel:
        """Build the module; its parameters do not depend on the classes."""
        del trained
        return _FedVptModel(tower, candidates, self)


class _FedVptModel(MethodModel):
    def __init__(self, tower: FrozenTower, candidates: ClassSet, method: FedVpt) -> None:
        super().__init__(tower, candidates)
        self._classifier = tower.classifier(candidates, method.wording)
        self._last_block = LastBlock(tower.backbone) if method.injection is Injection.LAST_BLOCK else None
        self._frozen_names = ("zero_shot", *(TAIL_NAMES if self._last_block else ("tokens",)))
        self.feature_names = (*self._frozen_names, "anchor")
        self.summary = f"static/{method.injection}"
        width = tower.backbone.vision_width
        drawn = torch.from_numpy(orthogonal((method.n_prompts, width), "prompts", method.initial_seed))
        self._initial = (drawn * width**0.5).float().to(self.device)  # unit rms
        self.prompts = LearnedTokens(self._initial)

    @torch.no_grad()
    def summarise(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the frozen feature and the tokens, or what the last block needs of them."""
        backbone = self.tower.backbone
        embedded, entering = backbone.tokens_of(pixels, stop=-1 if self._last_block else None)
        if self._last_block is None:
            return {"zero_shot": backbone.project(entering[:, 0]), "tokens": embedded}
        zero_shot = backbone.project(backbone.last_block(entering)[:, 0])
        return {"zero_shot": zero_shot, **self._last_block.summarise(entering)}

    @torch.no_grad()
    def complete(self, features: Features) -> dict[str, Tensor]:
        """Add the prompted feature at the public start."""
        initial = self._initial.expand(len(features["zero_shot"]), -1, -1)
        return super().complete({**features, "anchor": self._prompted(initial, features)})

    def forward(self, features: Features) -> Tensor:
        """Return class logits (b, n_classes)."""
        prompted = self._prompted(self.prompts(features["zero_shot"]), features)
        feature = F.normalize(features["zero_shot"] + (prompted - features["anchor"]), dim=-1)
        return self.tower.backbone.logit_scale * feature @ self._classifier.T

    def _prompted(self, prompts: Tensor, features: Features) -> Tensor:
        """Normalised features (b, joint_width) of images with prompts (b, n_prompts, vision_width)."""
        if self._last_block is not None:
            return self._last_block(prompts, dict(features))
        return self.tower.backbone.finish(torch.cat([features["tokens"], prompts], dim=1))
