"""The frozen tower and the trained prompts, joined.

The module registers what is trained and nothing else: its parameters are exactly the vector that sites exchange. It
takes features that were computed once for each image (`features.py`) and returns the prompted image feature. Before
any training that feature is zero-shot CLIP's, so "nothing learned" means zero-shot accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmvp.model.attention import WORKING_BYTES, KeysAndValues
from fedmvp.model.attributes import AttributeBank
from fedmvp.model.backbone import Backbone
from fedmvp.model.last_block import TAIL_NAMES, LastBlock
from fedmvp.model.loss import fedmvp_loss
from fedmvp.model.probe import CandidateProbe
from fedmvp.model.prompt_config import Injection, NeutralStart, PromptConfig, Variant
from fedmvp.model.promptformer import as_prompt_module, build_promptformer

Features = Mapping[str, Tensor]
"""Tensors of equal first dimension by name; see `PromptedModel.summarise`."""


class PromptedModel(nn.Module):
    """CLIP with FedMVP's visual prompts.

    Args:
        backbone: the frozen CLIP; stays outside this module's parameters.
        bank: attribute features and classifier of the task.
        config: shape, place and start of the prompts.
        probe: with a gain, the untrained probe where its trained classes are not the bank's; None makes one for these.

    Raises:
        UserError: sizes that do not fit the backbone.
    """

    def __init__(
        self, backbone: Backbone, bank: AttributeBank, config: PromptConfig, *, probe: CandidateProbe | None = None
    ) -> None:
        super().__init__()
        config.check_widths(backbone.vision_width, backbone.n_patches)
        self.config = config
        self.backbone = backbone
        self.bank = bank.to(backbone.device)
        self.logit_scale = backbone.logit_scale
        self._attributes = self.bank.conditioning
        self._last_block = LastBlock(backbone) if config.injection is Injection.LAST_BLOCK else None
        self._initial: tuple[nn.Module, ...] = ()  # a tuple, so that its parameters are not registered
        self._initial_shared: KeysAndValues | None = None
        self.promptformer = self._build()
        self.gate = self._build_gate()
        if config.probe_gain and probe is None:
            probe = CandidateProbe(backbone, bank.class_names, bank.class_names, bias=False)
        self.probe = probe if config.probe_gain else None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What `forward` reads, in the order of a training batch."""
        names = ("zero_shot", "prepared", *TAIL_NAMES) if self._last_block else ("zero_shot", "tokens")
        names = (*names, "anchor") if self.config.neutral_start is NeutralStart.ANCHOR else names
        return (*names, "target") if self.needs_mirrored_view else names

    @property
    def needs_mirrored_view(self) -> bool:
        """Whether the loss compares with the features of mirrored images too."""
        return self.config.flip and self.config.consistency_weight > 0

    @property
    def summary_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what `summarise` returns, without the dimension of the images."""
        backbone = self.backbone
        zero_shot = {"zero_shot": (backbone.joint_width,)}
        if self._last_block is None:
            return {**zero_shot, "tokens": (1 + backbone.n_patches, backbone.vision_width)}
        patches = torch.zeros(1, backbone.n_patches, backbone.vision_width)
        prepared = as_prompt_module(self.promptformer).prepare(patches)
        return {**zero_shot, "prepared": tuple(prepared.shape[1:]), **self._last_block.summary_shapes}

    @torch.no_grad()
    def summarise(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute what is frozen for each image, without the anchor, float32.

        Args:
            pixels: normalised images (b, 3, s, s).

        Returns:
            `zero_shot` (b, joint_width) and, for last-block injection, `prepared` and the names of `TAIL_NAMES`; for
            input injection `tokens` (b, 1 + n_patches, vision_width).
        """
        backbone = self.backbone
        embedded, entering = backbone.tokens_of(pixels, stop=-1 if self._last_block else None)
        if self._last_block is None:
            return {"zero_shot": backbone.project(entering[:, 0]), "tokens": embedded}
        prepared = as_prompt_module(self.promptformer).prepare(entering[:, 1:])
        summary = self._last_block.summarise(entering)
        return {"zero_shot": self._last_block.without_prompts(summary), "prepared": prepared, **summary}

    @torch.no_grad()
    def anchor(self, features: Features) -> Tensor:
        """Return the prompted features (b, joint_width) at the initial parameters, which are public and constant.

        By the training's own operations where their memory allows, so that the start is zero-shot to the last bit.
        """
        module = as_prompt_module(self.initial)
        if len(features["zero_shot"]) * self._attributes.numel() * 4 > WORKING_BYTES:
            return self.answered(features, self.initial, self.initial_keys_and_values())
        return self._prompted(features, lambda prepared: module(prepared, self._attributes))

    def forward(self, features: Features) -> Tensor:
        """Return normalised image features (b, joint_width)."""
        module = as_prompt_module(self.promptformer)
        prompted = self._prompted(features, lambda prepared: module(prepared, self._attributes))
        return self.joined(features["zero_shot"], prompted, features.get("anchor"))

    @property
    def initial(self) -> nn.Module:
        """The prompt module at its public initial parameters, frozen."""
        if not self._initial:
            self._initial = (self._build().requires_grad_(False),)
        return self._initial[0]

    @torch.no_grad()
    def keys_and_values(self) -> KeysAndValues:
        """Return what the attention reads of the attributes, at the present parameters."""
        return as_prompt_module(self.promptformer).keys_and_values(self._attributes)

    @torch.no_grad()
    def initial_keys_and_values(self) -> KeysAndValues:
        """Return what the attention reads of the attributes, at the initial parameters."""
        if self._initial_shared is None:
            self._initial_shared = as_prompt_module(self.initial).keys_and_values(self._attributes)
        return self._initial_shared

    def answered(
        self, features: Features, module: nn.Module, shared: KeysAndValues, *, keys_at_once: int | None = None
    ) -> Tensor:
        """Return normalised features (b, joint_width) of images with prompts, from keys and values made beforehand.

        Args:
            features: as `forward` takes them; the anchor is not read.
            module: `promptformer` or `initial`.
            shared: that module's keys and values.
            keys_at_once: most attributes attended to at a time; None takes what memory allows.
        """
        answer = as_prompt_module(module).answer
        return self._prompted(features, lambda prepared: answer(prepared, shared, keys_at_once=keys_at_once))

    def joined(self, zero_shot: Tensor, prompted: Tensor, anchor: Tensor | None) -> Tensor:
        """Return the feature (b, joint_width) that a neutral start makes of these; `anchor` is for that start alone."""
        if self.gate is None:
            if anchor is None:
                raise ValueError("a model that starts at an anchor needs the features called anchor")
            return F.normalize(zero_shot + (prompted - anchor), dim=-1)
        opened = torch.tanh(self.gate(torch.ones_like(zero_shot[:, :1])))  # (b, 1): one copy a sample, as all inputs
        return F.normalize(zero_shot + opened * (prompted - zero_shot), dim=-1)

    def logits(self, feature: Tensor) -> Tensor:
        """Return class logits (b, n_classes) of normalised image features, the probe's among them."""
        return self.with_probe(self.logit_scale * feature @ self.bank.classifier.T, feature)

    def with_probe(self, sentences: Tensor, feature: Tensor) -> Tensor:
        """Return what the sentences say (b, n_classes) of features, and what the probe adds where there is one."""
        return sentences if self.probe is None else sentences + self.config.probe_gain * self.probe(feature)

    def some_logits(self, feature: Tensor, first: int, count: int, *, tuned: bool = True) -> Tensor:
        """Return the logits (b, count) of the classes from a position on, in no more memory than they take.

        Args:
            feature: normalised image features (b, joint_width).
            first: position of the first class.
            count: of classes; fewer come where the list ends.
            tuned: with the probe; else what the sentences alone say.
        """
        logits = self.logit_scale * feature @ self.bank.classifier[first : first + count].T
        if tuned and self.probe is not None:
            logits = logits + self.config.probe_gain * self.probe.part(feature, first, count)
        return logits

    def loss_per_sample(self, feature: Tensor, features: Features, labels: Tensor) -> Tensor:
        """Return the FedMVP loss (b,) of prompted features.

        Args:
            feature: what `forward` returned (b, joint_width).
            features: the frozen features of the same images.
            labels: class indices (b,).
        """
        return fedmvp_loss(
            self.logits(feature),
            feature,
            labels,
            features["target" if self.needs_mirrored_view else "zero_shot"],
            consistency_weight=self.config.consistency_weight,
        )

    def _build(self) -> nn.Module:
        backbone = self.backbone
        module = build_promptformer(self.config, vision_width=backbone.vision_width, joint_width=backbone.joint_width)
        return module.to(backbone.device)

    def _build_gate(self) -> nn.Linear | None:
        if self.config.neutral_start is not NeutralStart.MIX:
            return None
        gate = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(gate.weight)
        return gate.to(self.backbone.device)

    def _prompted(self, features: Features, make_prompts: Callable[[Tensor], Tensor]) -> Tensor:
        """Return normalised CLIP features (b, joint_width) of images with the prompts made of what was prepared."""
        if self._last_block is not None:
            return self._last_block(make_prompts(features["prepared"]), dict(features))
        tokens, backbone = features["tokens"], self.backbone
        prompts = make_prompts(as_prompt_module(self.promptformer).prepare(tokens[:, 1:]))
        return backbone.finish(torch.cat([tokens, prompts], dim=1))


def summary_identity(config: PromptConfig) -> str:
    """Return the part of a configuration that decides what `summarise` computes; two equal ones may share a cache."""
    if config.injection is Injection.INPUT:
        return "input"
    prompts = f"/{config.n_prompts}" if config.variant is Variant.NARROW else ""
    return f"last-block/{config.variant}{prompts}"
