"""The real trainer of a site: its images, frozen features, and DP-SGD on the prompts.

With `fedmvp.client.processes` the one module of the client that imports torch; it is imported when a run starts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmvp.client.delta import require_small_delta, units_of
from fedmvp.client.launch import Launch
from fedmvp.client.progress import Report, shown
from fedmvp.data.dataset import ImageDataset, image_folder, manifest
from fedmvp.data.source import ImageFiles
from fedmvp.errors import UserError
from fedmvp.model.compute import Precision, TowerOptions, compute_reproducibly
from fedmvp.model.feature_cache import FeatureCache, open_feature_cache
from fedmvp.model.feature_records import FeatureLimits, FeatureRecords, gather_features
from fedmvp.model.from_policy import build_prompted_model
from fedmvp.model.parameters import get_vector
from fedmvp.model.prompted import PromptedModel
from fedmvp.study.cache_key import CACHE_KEY_FILE
from fedmvp.study.config import ClientConfig, ComputeSection
from fedmvp.study.policy import StudyPolicy
from fedmvp.training.free_memory import GIB
from fedmvp.training.from_policy import build_local_trainer
from fedmvp.training.local import LocalTrainer
from fedmvp.training.memory import MemoryPlan, MemoryRequest
from privacy.ledger import Ledger
from privacy.ranks import LeadingRank

log = structlog.get_logger("fedmvp.client")

Show = Callable[[str], AbstractContextManager[Report]]
"""Shows how far a piece of work is; called with what is being done."""


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


@dataclass(frozen=True)
class SiteRecords:
    """What a process trains on and with.

    Args:
        model: the policy's model.
        dataset: the site's images.
        features: what is frozen about them.
        labels: class indices (n,).
    """

    model: PromptedModel
    dataset: ImageDataset
    features: FeatureRecords
    labels: Tensor = field(repr=False)

    def patients(self, policy: StudyPolicy) -> tuple[str, ...] | None:
        """Whom each image is of, where the policy's unit is a patient."""
        return self.dataset.patients if policy.privacy.unit == "patient" else None

    def logical(self, policy: StudyPolicy) -> float:
        """How many records a whole batch is expected to have, for the size of its pieces."""
        units = units_of(policy, self.dataset)
        return policy.privacy.expected_batch_size * len(self.dataset) / units


def build_trainer(config: ClientConfig, policy: StudyPolicy, ledger: Ledger) -> SiteTrainer:
    """Load the policy's model and the site's images.

    Args:
        config: where the images, the cache and the device are.
        policy: the signed study.
        ledger: the open ledger of these images.

    Raises:
        UserError: an image, the backbone or the device cannot be used, or the device has too little memory.
    """
    records = read_records(config, policy, choose_device(config.compute.device))
    initial = get_vector(records.model)
    trainer = trainer_on(records, config, policy, ledger)
    tell_memory(trainer.plan_memory(memory_request(config), logical=records.logical(policy)), records.model)
    return SiteTrainer(trainer, initial)


def trainer_on(
    records: SiteRecords,
    config: ClientConfig,
    policy: StudyPolicy,
    ledger: Ledger,
    *,
    ranks: LeadingRank | None = None,
) -> LocalTrainer:
    """Return the trainer on what a process read; `ranks` are the other processes of this site, where there are any."""
    return build_local_trainer(
        policy,
        records.model,
        records.features,
        records.labels,
        ledger,
        patients=records.patients(policy),
        ranks=ranks,
        per_sample_engine=config.compute.per_sample_engine,
    )


def memory_request(config: ClientConfig, launch: Launch | None = None) -> MemoryRequest:
    """Return what a site wants of its memory.

    Args:
        config: a validated client.toml.
        launch: this process's place among several, which share a processor's memory.
    """
    compute, sharers = config.compute, 1 if launch is None else launch.size
    return MemoryRequest(compute.max_physical_batch, compute.memory_limit_gb, sharers)


def tell_memory(plan: MemoryPlan, model: PromptedModel) -> None:
    """Say, before training, what it will need."""
    usable = {} if plan.usable is None else {"usable_gb": round(plan.usable / GIB, 2)}
    log.info(
        "memory for training",
        device=str(model.backbone.device),
        estimated_peak_gb=round(plan.peak / GIB, 2),
        images_at_once=plan.physical_batch,
        **usable,
    )


def read_records(config: ClientConfig, policy: StudyPolicy, device: str, show: Show = shown) -> SiteRecords:
    """Load the policy's model and the site's images, and compute what is frozen.

    Args:
        config: where the images and the cache are.
        policy: the signed study.
        device: from `choose_device`.
        show: shows progress.

    Raises:
        UserError: an image or the backbone cannot be used.
    """
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    if config.compute.deterministic:
        compute_reproducibly()
    model = build_prompted_model(
        policy,
        device=device,
        options=tower_options_of(config.compute),
        checkpoint=config.compute.checkpoint,
        cache_dir=config.compute.cache_dir,
        announce=log.info,
    )
    dataset = _dataset(config, policy)
    with show("reading images") as progress:
        source = ImageFiles(dataset, model.backbone.image_size, workers=config.compute.workers, progress=progress)
    with show("computing frozen features") as progress:
        features = gather_features(
            model,
            source,
            cache=feature_cache_of(config),
            limits=FeatureLimits(memory_bytes=int(config.compute.features_max_gb * 1e9)),
            progress=progress,
        )
    return SiteRecords(model, dataset, features, torch.tensor(dataset.labels, dtype=torch.int64))


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


def choose_device(wanted: str, launch: Launch | None = None) -> str:
    """Return the device to compute on, present on this machine.

    Args:
        wanted: "cpu", "mps", "cuda" or "cuda:N"; "auto" takes the fastest there is.
        launch: this process's place among several, of which each takes a GPU of its own.

    Raises:
        UserError: this machine has no such device, or not one for each process.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = torch.backends.mps.is_available()
    if launch is not None:
        return _device_of_rank(wanted, launch, gpus)
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


def _device_of_rank(wanted: str, launch: Launch, gpus: int) -> str:
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return "cpu"
    if wanted in {"auto", "cuda"} and gpus >= launch.size:
        return f"cuda:{launch.rank}"
    if wanted in {"auto", "cuda"}:
        raise UserError(
            f"{launch.size} processes were started for {gpus} GPUs",
            remedy=f"torchrun --nproc-per-node {max(gpus, 1)}: one process for each GPU",
        )
    raise UserError(
        f"device {wanted} is one device, and {launch.size} processes were started",
        remedy='set [compute] device = "cuda": process N then takes cuda:N',
    )
