"""The choices that define a prompted model; equal at every party, and fixed before the first round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from fedmvp.errors import UserError


class Variant(StrEnum):
    """Which module makes the prompts, and which of its parameters are trained."""

    FULL = "full"
    """The paper's PromptFormer; 9,845,760 parameters at ViT-B-16."""
    NARROW = "narrow"
    """The same attention through a bottleneck, no feed-forward: a few thousand parameters, for private training."""
    LORA = "lora"
    """A frozen full PromptFormer with trained low-rank pairs at the inputs of its query, key and value."""


class Injection(StrEnum):
    """Where the prompts join the tower's tokens."""

    INPUT = "input"
    """After the patch embedding, as in the paper: every block sees them."""
    LAST_BLOCK = "last-block"
    """Before the last block: everything earlier is computed once for each image."""


class NeutralStart(StrEnum):
    """How the untrained model is made equal to zero-shot CLIP."""

    ANCHOR = "anchor"
    """zero-shot + prompted - prompted at the initial parameters, normalised. Every parameter has gradient at once."""
    MIX = "mix"
    """zero-shot + tanh(gate) (prompted - zero-shot), normalised, gate = 0. Only the gate has gradient at first."""


@dataclass(frozen=True)
class PromptConfig:
    """Shape, place and start of the prompts.

    Attributes:
        variant: see `Variant`.
        injection: see `Injection`.
        n_prompts: prompts an image.
        n_heads: attention heads of the PromptFormer; divides its inner width.
        bottleneck_width: inner width of the narrow variant.
        lora_rank: rank of each pair of the LoRA variant.
        neutral_start: see `NeutralStart`.
        consistency_weight: weight of the consistency term (alpha in the paper, which takes 10).
        probe_gain: of a linear probe trained beside the prompts: what its logits are multiplied by, so how long its
            gradient is beside theirs. 0: no probe.
        flip: compare with a randomly mirrored view; wrong for digits and letters.
        initial_seed: seed of the public initial parameters.
    """

    variant: Variant = Variant.NARROW
    injection: Injection = Injection.LAST_BLOCK
    n_prompts: int = 16
    n_heads: int = 4
    bottleneck_width: int = 32
    lora_rank: int = 8
    neutral_start: NeutralStart = NeutralStart.ANCHOR
    consistency_weight: float = 0.0
    flip: bool = False
    probe_gain: float = 0.0
    initial_seed: int = 0

    def check_widths(self, vision_width: int, n_patches: int) -> None:
        """Check the choices that depend on the backbone.

        Raises:
            UserError: heads that do not divide the inner width, more prompts than patches, or a gain that is none.
        """
        if not (math.isfinite(self.probe_gain) and self.probe_gain >= 0):
            raise UserError(
                f"probe_gain {self.probe_gain:g} is no gain", remedy="set [model] probe_gain to 0 for no probe, or to 4"
            )
        narrow = self.variant is Variant.NARROW
        width = self.bottleneck_width if narrow else vision_width
        if width % self.n_heads:
            field = "bottleneck_width" if narrow else "the backbone's vision width"
            raise UserError(
                f"n_heads {self.n_heads} does not divide {field} {width}",
                remedy="change [model] n_heads" + (" or bottleneck_width" if narrow else ""),
            )
        if self.n_prompts > n_patches:
            raise UserError(
                f"n_prompts {self.n_prompts} is more than the {n_patches} patches they are pooled from",
                remedy="lower [model] n_prompts",
            )
