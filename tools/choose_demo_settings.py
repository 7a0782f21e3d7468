"""Choose the demo's hyper-parameters on public images that are none of the demo's.

    python -m tools.choose_demo_settings --corpus CORPUS --trials 24

Two stand-in tasks, with the noise of the demo's policy, 1,000 images for each of four sites and 1,000 public ones, none
which took part in pre-training: Fashion-MNIST's test images upside down, and CIFAR-10's with inverted colours. Both
are concepts the tower knows, drawn from elsewhere, as the demo's digits are. Choosing on the demo's own images would
be a release that no ledger shows, and choosing on its public set would flatter the result.

Prints one JSON line a trial.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demo.references import LabelledFeatures, unsafe_ledger, without_privacy
from fedmvp.evaluation.accuracy import prompted_accuracy, zero_shot_accuracy
from fedmvp.model.attributes import build_attribute_bank
from fedmvp.model.features import extract_features
from fedmvp.model.loading import BackboneSpec, load_backbone
from fedmvp.model.parameters import dimension, get_vector, set_vector
from fedmvp.model.prompt_config import Injection, NeutralStart, PromptConfig, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.training.aggregate import OptimizerKind, ServerOptimizer, ServerState
from fedmvp.training.baselines import LinearProbe, probe_trainer, synthetic_centre
from fedmvp.training.local import LocalTrainer, LocalTraining
from fedmvp.training.rounds import Site, run_rounds
from privacy.accountant import calibrate_noise_multiplier
from privacy.ledger import Ledger
from privacy.mechanism import ADD_OR_REMOVE_ONE, Mode, PrivacyParameters
from tools.pretrain.collect import read_idx
from tools.pretrain.corpus import CIFAR10_CLASSES, FASHION_CLASSES, read_cifar10
from tools.pretrain.export import described_task, to_backbone_size

N_SITES, PER_SITE, PUBLIC = 4, 1000, 1000
DELTA = 1e-5

PROMPT_GRID: dict[str, list[Any]] = {
    "injection": ["last-block"],
    "n_prompts": [16],
    "bottleneck_width": [8, 16],
    "n_heads": [4],
    "neutral_start": ["anchor"],
    "consistency_weight": [0.0, 1.0],
    "rounds": [40, 80],
    "local_steps": [1],
    "sample_rate": [0.5],
    "max_grad_norm": [0.5, 2.0],
    "server_learning_rate": [0.01, 0.03],
}
PROBE_GRID: dict[str, list[Any]] = {
    "rounds": [40, 80],
    "local_steps": [1],
    "sample_rate": [0.5],
    "max_grad_norm": [0.5, 1.0],
    "server_learning_rate": [0.03, 0.1, 0.3],
}


def trials(grid: dict[str, list[Any]], most: int, seed: int) -> Iterator[dict[str, Any]]:
    """Distinct points of a grid in random order."""
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    random.Random(seed).shuffle(points)
    yield from points[:most]


def privacy_of(trial: dict[str, Any], epsilon: float) -> PrivacyParameters:
    """The mechanism that spends ``epsilon`` over all rounds of a trial."""
    steps = trial["rounds"] * trial["local_steps"]
    noise = calibrate_noise_multiplier(epsilon, DELTA, trial["sample_rate"], steps)
    return PrivacyParameters(
        mode=Mode.RECORD_LOCAL,
        unit="record",
        neighboring_relation=ADD_OR_REMOVE_ONE,
        sample_rate=trial["sample_rate"],
        noise_multiplier=noise,
        max_grad_norm=trial["max_grad_norm"],
        expected_batch_size=trial["sample_rate"] * PER_SITE,
        steps_per_round=trial["local_steps"],
        delta=DELTA,
    )


def read_task(name: str, corpus: Path) -> tuple[str, tuple[str, ...], np.ndarray, np.ndarray]:
    """Group and classes of a stand-in task, its images ``(n, 1 or 3, h, w)`` uint8, and labels ``(n,)``."""
    if name == "turned-fashion":
        images = read_idx(corpus / "t10k-images-idx3-ubyte.gz")[:, None, ::-1].copy()
        return "fashion-mnist", FASHION_CLASSES, images, read_idx(corpus / "t10k-labels-idx1-ubyte.gz").astype(np.int64)
    pixels, labels = read_cifar10(corpus / "cifar10.tar.gz", "test")
    return "cifar10", CIFAR10_CLASSES, 255 - pixels, labels


class Proxy:
    """The stand-in task, with frozen features for one shape of prompts at a time."""

    def __init__(self, name: str, corpus: Path, checkpoint: Path | None, seed: int) -> None:
        self.backbone = load_backbone(BackboneSpec("fedmvp-tiny", "embedded", checkpoint=checkpoint))
        group, classes, pixels, labels = read_task(name, corpus)
        self.bank = build_attribute_bank(self.backbone, described_task(group, classes))
        order = np.random.default_rng(seed).permutation(len(pixels))[: N_SITES * PER_SITE + PUBLIC]
        self.images = to_backbone_size(torch.tensor(pixels[order]), self.backbone.image_size)
        self.labels = torch.tensor(labels[order])
        self._features: dict[Any, Any] = {}

    def prepare(self, config: PromptConfig) -> tuple[PromptedModel, list[LabelledFeatures], LabelledFeatures]:
        """A fresh model and the parties' features under it; the last part is public."""
        model = PromptedModel(self.backbone, self.bank, config)
        key = (
            config.injection,
            config.n_prompts,
            config.bottleneck_width,
            config.n_heads,
            config.neutral_start,
            config.variant,
        )
        if key not in self._features:
            self._features = {key: extract_features(model, self.images)}
        parts = torch.arange(len(self.images)).split([PER_SITE] * N_SITES + [PUBLIC])
        features = self._features[key]
        parties = [
            LabelledFeatures(type(features)({n: t[p] for n, t in features.tensors.items()}), self.labels[p])
            for p in parts
        ]
        return model, parties[:-1], parties[-1]

    def ledgers(self, folder: Path, *, private: bool) -> list[Ledger]:
        """Fresh ledgers with room for everything: nothing here is released."""
        if not private:
            return [unsafe_ledger(folder / f"{time.monotonic_ns()}.sqlite", DELTA) for _ in range(N_SITES)]
        return [
            Ledger.create(folder / f"{time.monotonic_ns()}.sqlite", dataset_id=str(i), delta=DELTA, epsilon_max=1e6)
            for i in range(N_SITES)
        ]


def run_prompts(proxy: Proxy, trial: dict[str, Any], epsilon: float, folder: Path, *, private: bool) -> dict[str, Any]:
    """One trial of the prompts."""
    config = PromptConfig(
        variant=Variant.NARROW,
        injection=Injection(trial["injection"]),
        n_prompts=trial["n_prompts"],
        n_heads=trial["n_heads"],
        bottleneck_width=trial["bottleneck_width"],
        neutral_start=NeutralStart(trial["neutral_start"]),
        consistency_weight=trial["consistency_weight"],
    )
    model, sites, public = proxy.prepare(config)
    params = privacy_of(trial, epsilon)
    params = params if private else without_privacy(params)
    ledgers = proxy.ledgers(folder, private=private)
    training = LocalTraining(learning_rate=1.0, max_physical_batch=1024)
    simulated = [
        Site(
            LocalTrainer.for_prompts(model, s.features, s.labels, training=training, privacy=params, ledger=ledger),
            ledger,
        )
        for s, ledger in zip(sites, ledgers, strict=True)
    ]
    optimizer = ServerOptimizer(OptimizerKind.ADAM, learning_rate=trial["server_learning_rate"])
    curve: list[float] = []

    def measure(number: int, state: ServerState) -> None:
        if number * 4 % trial["rounds"] == 0:
            curve.append(prompted_accuracy(model, public.features, public.labels, parameters=state.parameters).value)

    floor = zero_shot_accuracy(model, public.features, public.labels).value
    start = ServerState.initial(get_vector(model))
    run_rounds(
        simulated,
        start,
        rounds=trial["rounds"],
        optimizer=optimizer,
        privacy=params,
        run_id="proxy",
        after_round=measure,
    )
    return {
        "zero_shot": floor,
        "accuracy": curve[-1],
        "curve": curve,
        "dimension": dimension(model),
        "noise": params.noise_multiplier,
    }


def run_probe(proxy: Proxy, trial: dict[str, Any], epsilon: float, folder: Path, *, private: bool) -> dict[str, Any]:
    """One trial of the linear probe."""
    _, sites, public = proxy.prepare(PromptConfig(n_heads=4, bottleneck_width=8))
    params = privacy_of(trial, epsilon)
    params = params if private else without_privacy(params)
    probe = LinearProbe(proxy.backbone.joint_width, 10, centre=synthetic_centre(proxy.backbone))
    training = LocalTraining(learning_rate=1.0, max_physical_batch=2048)
    simulated = [
        Site(
            probe_trainer(
                probe, s.features.tensors["zero_shot"], s.labels, training=training, privacy=params, ledger=ledger
            ),
            ledger,
        )
        for s, ledger in zip(sites, proxy.ledgers(folder, private=private), strict=True)
    ]
    optimizer = ServerOptimizer(OptimizerKind.ADAM, learning_rate=trial["server_learning_rate"])
    start = ServerState.initial(get_vector(probe))
    tuned = run_rounds(simulated, start, rounds=trial["rounds"], optimizer=optimizer, privacy=params, run_id="proxy")
    set_vector(probe, tuned.parameters)
    with torch.no_grad():
        right = (probe(public.features.tensors["zero_shot"]).argmax(1) == public.labels).float().mean().item()
    return {"accuracy": round(right, 4), "dimension": dimension(probe), "noise": params.noise_multiplier}


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="the folder that tools.pretrain.collect made")
    parser.add_argument("--task", choices=("turned-fashion", "inverted-cifar10"), default="turned-fashion")
    parser.add_argument("--checkpoint", type=Path, help="an exported backbone other than the shipped one")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epsilon", type=float, default=7.9)
    parser.add_argument("--what", choices=("prompts", "probe"), default="prompts")
    parser.add_argument("--without-privacy", action="store_true")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="fix or widen one axis of the grid"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    grid = dict(PROMPT_GRID if arguments.what == "prompts" else PROBE_GRID)
    for item in arguments.set:
        key, _, value = item.partition("=")
        parsed = json.loads(value)
        grid[key] = parsed if isinstance(parsed, list) else [parsed]
    run = run_prompts if arguments.what == "prompts" else run_probe
    proxy = Proxy(arguments.task, arguments.corpus, arguments.checkpoint, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        for trial in trials(grid, arguments.trials, arguments.seed):
            start = time.monotonic()
            found = run(proxy, trial, arguments.epsilon, Path(folder), private=not arguments.without_privacy)
            print(json.dumps({**trial, **found, "seconds": round(time.monotonic() - start, 1)}), flush=True)


if __name__ == "__main__":
    main()
