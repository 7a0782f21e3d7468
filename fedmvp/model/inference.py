"""Classes of images by a prompted model that is not being trained.

Keys and values of the attributes are made once for a class set and serve every image; classes are gone through in
parts. So thousands of classes fit into a bounded memory. Equal to `PromptedModel.forward` and `logits` up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmvp.model.attention import WORKING_BYTES, KeysAndValues
from fedmvp.model.parameters import trained_parameters
from fedmvp.model.prompted import Features, PromptedModel

_FEWEST_CLASSES = 256


@dataclass(frozen=True, eq=False)
class Ranking:
    """The likeliest classes of images.

    Attributes:
        classes: positions in the class list, likeliest first; int64 (b, k).
        probabilities: their softmax over all classes, in [0, 1]; (b, k).
    """

    classes: Tensor
    probabilities: Tensor


class Predictor:
    """A prompted model for inference.

    Keys and values are made when they are first asked for and made anew when a trained parameter has changed since: the
    parameters are compared with a copy, number by number, so that no way of writing them goes unnoticed.

    Args:
        model: the prompted model; not changed.
        working_bytes: what the logits of a part of the classes may take, at least 1.
        tuned: classes by the trained probe too, where the model has one; else by the sentences alone.
    """

    def __init__(self, model: PromptedModel, *, working_bytes: int = WORKING_BYTES, tuned: bool = True) -> None:
        self._model = model
        self._tuned = tuned
        self._working_bytes = working_bytes
        self._copies: list[Tensor] = []
        self._shared: KeysAndValues | None = None

    @torch.no_grad()
    def read(self, images: Tensor) -> dict[str, Tensor]:
        """Compute what `feature` reads of uint8 images (b, 3, s, s) at the backbone's size; nothing is cached."""
        model = self._model
        features = model.summarise(model.backbone.normalise(images))
        if "anchor" in model.feature_names:
            features["anchor"] = model.answered(features, model.initial, model.initial_keys_and_values())
        return features

    @torch.no_grad()
    def feature(self, features: Features) -> Tensor:
        """Return normalised prompted features (b, joint_width).

        Args:
            features: from `read`, or from `extract_features`, on the model's device.
        """
        model = self._model
        prompted = model.answered(features, model.promptformer, self._fresh())
        return model.joined(features["zero_shot"], prompted, features.get("anchor"))

    @torch.no_grad()
    def rank(self, feature: Tensor, most: int) -> Ranking:
        """Return the likeliest classes of normalised features (b, joint_width).

        Args:
            feature: from `feature`, or zero-shot.
            most: classes an image; all of them where there are fewer.
        """
        best, where, mass = None, None, None
        for first, logits in self._logits_in_parts(feature):
            part_mass = logits.logsumexp(dim=-1)
            mass = part_mass if mass is None else torch.logaddexp(mass, part_mass)
            top = logits.topk(min(most, logits.shape[1]), dim=-1)
            merged, places = (top.values, top.indices + first)
            if best is not None and where is not None:
                merged, places = torch.cat([best, merged], dim=-1), torch.cat([where, places], dim=-1)
            order = merged.sort(dim=-1, descending=True, stable=True).indices[:, :most]
            best, where = merged.gather(-1, order), places.gather(-1, order)
        if best is None or where is None or mass is None:
            raise ValueError("a task has no classes")
        return Ranking(where, (best - mass[:, None]).exp())

    @torch.no_grad()
    def logits(self, feature: Tensor) -> Tensor:
        """Return all class logits (b, n_classes) of normalised features, on the CPU."""
        return torch.cat([logits.cpu() for _, logits in self._logits_in_parts(feature)], dim=-1)

    def _logits_in_parts(self, feature: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (first class, logits (b, classes of the part)) in the order of the classes."""
        model = self._model
        at_once = max(_FEWEST_CLASSES, self._working_bytes // (4 * max(1, len(feature))))
        first = 0
        while first < len(model.bank.classifier):
            yield first, model.some_logits(feature, first, at_once, tuned=self._tuned)
            first += at_once

    def _fresh(self) -> KeysAndValues:
        now = [value.detach() for _, value in trained_parameters(self._model)]
        known = len(now) == len(self._copies) and all(map(torch.equal, now, self._copies))
        if self._shared is None or not known:
            self._copies = [value.clone() for value in now]
            self._shared = self._model.keys_and_values()
        return self._shared
