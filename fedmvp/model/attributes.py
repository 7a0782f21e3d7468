"""The text side of a study: attribute features to condition on and the classifier made of sentences.

Frozen and public, so it is computed once and cached by the weights and the sentences. FedMVP conditions the prompts on
the bare attributes and classifies with the sentences that hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedmvp.model.backbone import Backbone
from fedmvp.model.cache import cache_key, cached
from fedmvp.model.task import Task


@dataclass(frozen=True)
class AttributeBank:
    """What the text tower says of a task.

    Attributes:
        attributes: normalised features of the bare attributes, padded with zeros; (n_classes, most_attributes,
            joint_width).
        mask: True where an attribute exists; (n_classes, most_attributes).
        classifier: mean over attributes of the normalised sentence features, not normalised again; (n_classes,
            joint_width).
        class_names: the classes in the order of the rows.
        unknown_words: word pieces the text tower was never trained on; empty for the published backbones.
    """

    attributes: Tensor
    mask: Tensor
    classifier: Tensor
    class_names: tuple[str, ...]
    unknown_words: tuple[str, ...] = ()

    @property
    def conditioning(self) -> Tensor:
        """The attributes that exist, centred over attributes and scaled to unit rms; (n_attributes, joint_width).

        Text features of one domain lie in a narrow cone. Without centring every attribute looks alike to an attention,
        and prompts come out equal for all images.
        """
        rows = self.attributes[self.mask]
        rows = rows - rows.mean(dim=0, keepdim=True)
        return rows / rows.square().mean().sqrt().clamp_min(1e-6)

    def to(self, device: torch.device | str) -> AttributeBank:
        """Return the bank on another device."""
        return AttributeBank(
            self.attributes.to(device),
            self.mask.to(device),
            self.classifier.to(device),
            self.class_names,
            self.unknown_words,
        )


def build_attribute_bank(backbone: Backbone, task: Task, *, cache_dir: Path | None = None) -> AttributeBank:
    """Encode a task's attributes and sentences, or read them from the cache.

    Args:
        backbone: the frozen CLIP.
        task: classes, attributes, template.
        cache_dir: where the features are kept, by (backbone state hash, sentences); None keeps nothing.

    Raises:
        UserError: a sentence is longer than the text tower reads.
    """
    sizes = [len(item.attributes) for item in task.classes]
    key = cache_key("attributes", backbone.state_hash(), repr(sizes), *task.attributes, *task.sentences)
    tensors = cached(cache_dir, key, lambda: _encode(backbone, task, sizes), prefix="attributes")
    return AttributeBank(
        attributes=tensors["attributes"].to(backbone.device),
        mask=tensors["mask"].to(backbone.device),
        classifier=tensors["classifier"].to(backbone.device),
        class_names=task.class_names,
        unknown_words=backbone.unknown_words([*task.attributes, *task.sentences]),
    )


def _encode(backbone: Backbone, task: Task, sizes: list[int]) -> dict[str, Tensor]:
    bare = torch.split(backbone.encode_sentences(task.attributes), sizes)
    sentences = torch.split(backbone.encode_sentences(task.sentences), sizes)
    attributes = torch.zeros(len(sizes), max(sizes), backbone.joint_width, device=backbone.device)
    mask = torch.zeros(len(sizes), max(sizes), dtype=torch.bool, device=backbone.device)
    for row, features in enumerate(bare):
        attributes[row, : sizes[row]] = features
        mask[row, : sizes[row]] = True
    classifier = torch.stack([features.mean(dim=0) for features in sentences])
    return {"attributes": attributes, "mask": mask, "classifier": classifier}
