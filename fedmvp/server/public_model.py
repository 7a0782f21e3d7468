"""The real model at the coordinator: its public start, and its accuracy on the public images of server.toml.

The one module of the server that imports torch; it is imported when a run starts.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmvp.data.dataset import image_folder, manifest
from fedmvp.data.source import ImageFiles
from fedmvp.evaluation.accuracy import prompted_accuracy
from fedmvp.model.feature_cache import open_feature_cache
from fedmvp.model.feature_records import FeatureLimits, gather_features
from fedmvp.model.features import FrozenFeatures
from fedmvp.model.from_policy import build_prompted_model
from fedmvp.model.parameters import get_vector
from fedmvp.model.prompted import PromptedModel
from fedmvp.server.evaluator import PublicScore
from fedmvp.study.cache_key import CACHE_KEY_FILE
from fedmvp.study.config import ServerConfig
from fedmvp.study.policy import StudyPolicy

CACHE_MAX_GB = 20.0
"""Room for the features of some hundred thousand public images; more are computed when the server starts."""


class PromptedPublicModel:
    """Implements :class:`fedmvp.server.evaluator.PublicModel` with the policy's model.

    Args:
        model: the prompted model.
        images: frozen features and labels of the public images, or None.
    """

    def __init__(self, model: PromptedModel, images: tuple[FrozenFeatures, Tensor] | None) -> None:
        self._model = model
        self._images = images
        self._initial = get_vector(model)
        self._lock = threading.Lock()

    def initial_parameters(self) -> NDArray[np.float32]:
        """The public starting point (d,)."""
        return self._initial.copy()

    def score(self, parameters: NDArray[np.float32]) -> PublicScore | None:
        """Accuracy on the public images."""
        if self._images is None:
            return None
        with self._lock:  # the parameters are written into the one model
            result = prompted_accuracy(self._model, *self._images, parameters=parameters)
        return PublicScore(result.value, result.low, result.high, result.total)


def load_public_model(config: ServerConfig, policy: StudyPolicy) -> PromptedPublicModel:
    """Build the policy's model and read the public images, if server.toml names any.

    Raises:
        UserError: the backbone or the images cannot be used.
    """
    cache = config.server.state_dir / "cache"
    model = build_prompted_model(policy, cache_dir=cache)
    return PromptedPublicModel(model, _public_images(config, policy, model, cache))


def _public_images(
    config: ServerConfig, policy: StudyPolicy, model: PromptedModel, cache: Path
) -> tuple[FrozenFeatures, Tensor] | None:
    section, classes = config.evaluation, policy.task.class_names
    if section.manifest is not None:
        dataset = manifest(section.manifest, classes, require_every_class=False)
    elif section.images is not None:
        dataset = image_folder(section.images, classes, require_every_class=False)
    else:
        return None
    source = ImageFiles(dataset, model.backbone.image_size)
    sealed = open_feature_cache(cache, cache.with_name(CACHE_KEY_FILE), max_gb=CACHE_MAX_GB, dataset="public images")
    records = gather_features(model, source, cache=sealed, limits=FeatureLimits(batch_size=section.batch_size))
    features = FrozenFeatures(records.all())
    records.close()
    return features, torch.tensor(dataset.labels, dtype=torch.int64)
