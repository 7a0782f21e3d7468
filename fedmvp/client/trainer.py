"""The real trainer of a site: its images, frozen features, and DP-SGD on the prompts.

The one module of the client that imports torch; it is imported when a run starts.
"""

from __future__ import annotations

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from fedmvp.client.delta import require_small_delta, units_of
from fedmvp.client.progress import shown
from fedmvp.data.dataset import ImageDataset, image_folder, manifest
from fedmvp.data.source import ImageFiles
from fedmvp.errors import UserError
from fedmvp.model.compute import Precision, TowerOptions, compute_reproducibly
from fedmvp.model.feature_cache import FeatureCache, open_feature_cache
from fedmvp.model.feature_records import FeatureLimits, gather_features
from fedmvp.model.from_policy import build_prompted_model
from fedmvp.model.parameters import get_vector
from fedmvp.study.cache_key import CACHE_KEY_FILE
from fedmvp.study.config import ClientConfig, ComputeSection
from fedmvp.study.policy import StudyPolicy
from fedmvp.training.from_policy import build_local_trainer
from fedmvp.training.local import LocalTrainer
from privacy.ledger import Ledger

log = structlog.get_logger("fedmvp.client")


class SiteTrainer:
    """Implements :class:`fedmvp.client.update_source.UpdateSource` with the real trainer.

    Args:
        trainer: trains the policy's prompts on the site's images.
        initial: the policy's own initial parameters (d,).
    """

    def __init__(self, trainer: LocalTrainer, initial: NDArray[np.float32]) -> None:
        self._trainer = trainer
        self._initial = initial
        self.dimension = len(initial)

    def initial_parameters(self) -> NDArray[np.float32]:
        """Return where every party starts (d,)."""
        return self._initial.copy()

    def train_round(self, parameters: NDArray[np.float32]) -> NDArray[np.float64]:
        """Train from `parameters` (d,) and return the difference (d,)."""
        return self._trainer.train_round(parameters)

    def train_on_grid(self, parameters: NDArray[np.float32], honest_survivors: int) -> NDArray[np.int64]:
        """In the distributed modes: the difference (d,) in steps of the ring, with this site's share of the noise."""
        return self._trainer.train_on_grid(parameters, honest_survivors)


def build_trainer(config: ClientConfig, policy: StudyPolicy, ledger: Ledger) -> SiteTrainer:
    """Load the policy's model and the site's images.

    Args:
        config: where the images, the cache and the device are.
        policy: the signed study.
        ledger: the open ledger of these images.

    Raises:
        UserError: an image, the backbone or the device cannot be used.
    """
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    if config.compute.deterministic:
        compute_reproducibly()
    model = build_prompted_model(
        policy,
        device=choose_device(config.compute.device),
        options=tower_options_of(config.compute),
        checkpoint=config.compute.checkpoint,
        cache_dir=config.compute.cache_dir,
        announce=log.info,
    )
    dataset = _dataset(config, policy)
    with shown("reading images") as progress:
        source = ImageFiles(dataset, model.backbone.image_size, progress=progress)
    with shown("computing frozen features") as progress:
        features = gather_features(
            model,
            source,
            cache=feature_cache_of(config),
            limits=FeatureLimits(memory_bytes=int(config.compute.features_max_gb * 1e9)),
            progress=progress,
        )
    labels = torch.tensor(dataset.labels, dtype=torch.int64)
    initial = get_vector(model)
    patients = dataset.patients if policy.privacy.unit == "patient" else None
    return SiteTrainer(build_local_trainer(policy, model, features, labels, ledger, patients=patients), initial)


def tower_options_of(compute: ComputeSection) -> TowerOptions:
    """Return how a site's frozen tower runs."""
    return TowerOptions(
        precision=Precision(compute.precision),
        channels_last=compute.channels_last,
        compile=compute.compile,
        activation_checkpointing=compute.activation_checkpointing,
    )


def feature_cache_of(config: ClientConfig) -> FeatureCache | None:
    """Open a site's own cache of the features of its images; None where it keeps none.

    Raises:
        UserError: others could have read its key.
    """
    return open_feature_cache(
        config.compute.cache_dir,
        config.identity.signing_key.with_name(CACHE_KEY_FILE),
        max_gb=config.compute.cache_max_gb,
        dataset=config.data.dataset_id,
    )


def _dataset(config: ClientConfig, policy: StudyPolicy) -> ImageDataset:
    read = image_folder if config.data.kind == "image-folder" else manifest
    dataset = read(config.data.path, policy.task.class_names, require_every_class=config.data.require_every_class)
    if policy.privacy.unit != "site":
        require_small_delta(policy, units_of(policy, dataset))
    return dataset


def choose_device(wanted: str) -> str:
    """Return the device to compute on, present on this machine.

    Args:
        wanted: "cpu", "mps", "cuda" or "cuda:N"; "auto" takes the fastest there is.

    Raises:
        UserError: this machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = torch.backends.mps.is_available()
    if wanted == "auto":
        return "cuda" if gpus else "mps" if apple else "cpu"
    kind, _, number = wanted.partition(":")
    if kind == "cuda" and int(number or 0) >= gpus:
        found = f"it has {gpus} CUDA devices, counted from 0" if gpus else "it has no CUDA device that torch can use"
    elif kind == "mps" and not apple:
        found = "it has no Apple GPU that torch can use"
    else:
        return wanted
    raise UserError(
        f"device {wanted} is not on this machine: {found}",
        remedy='set [compute] device = "auto", or give another --device such as cpu',
    )
