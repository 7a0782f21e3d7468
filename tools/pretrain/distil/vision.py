"""Train the vision tower of an embedded CLIP against the teachers.

    python -m tools.pretrain.distil.vision --corpus CORPUS --out unseen.pt --without cifar10
    python -m tools.pretrain.distil.vision --corpus CORPUS --out small.pt --start unseen.pt

The student's distribution over names is a softmax over the likeness of its feature to MiniLM's features of the names,
so that its space is MiniLM's, centred (Hinton et al. 2015, text as the classifier).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmvp.model.supported import EMBEDDED_NAME
from tools.pretrain.distil.batches import Batch, draw
from tools.pretrain.distil.choices import judge
from tools.pretrain.distil.guides import CHANNELS
from tools.pretrain.distil.sources import load_sources
from tools.pretrain.distil.state import Training
from tools.pretrain.distil.tower import LAYERS, begin_with, build, layers_of, see
from tools.pretrain.train import make_optimizers

PATCH_DROPOUT = ((0.0, 0.5), (0.7, 0.25), (0.92, 0.0))
DECAY = 0.3  # the part of the time in which the learning rate comes down to nothing
EMA_DECAY, GUIDANCE = 0.998, 2.0


def train(arguments: argparse.Namespace) -> None:
    """The whole training, or the rest of one; saves all that is needed to go on every few minutes."""
    torch.manual_seed(arguments.seed)
    sources, bank = load_sources(arguments.corpus, frozenset(arguments.without))
    started = torch.load(arguments.out, weights_only=True)["model"] if arguments.out.exists() else None
    model = build(arguments.layers if started is None else layers_of(started))
    average = copy.deepcopy(model).requires_grad_(False)
    guide = torch.nn.Linear(int(model.conv1.out_channels), sum(CHANNELS.values()))  # type: ignore[union-attr, arg-type]
    training = Training(
        {"model": model, "average": average, "guide": guide},
        make_optimizers(torch.nn.ModuleDict({"visual": model, "guide": guide}), arguments.learning_rate),
    )
    if arguments.start and not arguments.out.exists():
        begin_with(arguments.start, model, average, guide)
    training.resume(arguments.out)
    torch.manual_seed(arguments.seed + training.step)
    last = last_saved = time.monotonic()
    while training.spent < arguments.seconds:
        progress = training.spent / arguments.seconds
        model.patch_dropout.prob = [share for begin, share in PATCH_DROPOUT if begin <= progress][-1]
        loss, parts = lose(model, guide, bank, draw(sources, bank, arguments.batch))
        rate = arguments.learning_rate * min(1.0, (training.step + 1) / 100) * min(1.0, (1 - progress) / DECAY) + 1e-6
        training.descend(loss, rate)
        with torch.no_grad():
            model.log_scale.clamp_(max=math.log(60))
            keep = min(EMA_DECAY, training.step / (training.step + 9))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        now = time.monotonic()
        training.spent, last = training.spent + now - last, now
        if training.step % 25 == 0:
            said = {key: round(value, 3) for key, value in parts.items()}
            print(json.dumps({"step": training.step, "seconds": round(training.spent), **said}), flush=True)
        if now - last_saved > arguments.save_every or training.spent >= arguments.seconds:
            training.save(arguments.out)
            last_saved = now
            print(json.dumps(judge(average, arguments.corpus, bank)), flush=True)


def lose(model: torch.nn.Module, guide: torch.nn.Module, bank: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch, and its parts.

    Names by cross-entropy, the likeness of a feature to the mean meaning of its target, and what each patch shows.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, patches, shown = see(model, batch.images)
        seen = guide(patches[batch.guided])
    features = F.normalize(features.float(), dim=-1)
    meaning = F.normalize(batch.targets @ bank[batch.asked], dim=-1)
    cosine = (features * meaning).sum(1).mean()
    names = F.cross_entropy(model.log_scale.exp() * features @ bank[batch.asked].T, batch.targets)  # type: ignore[operator]
    wanted = batch.guides.gather(1, shown[batch.guided][:, :, None].expand(-1, -1, batch.guides.shape[-1]))
    guidance = F.mse_loss(seen.float(), wanted) if len(wanted) else torch.zeros(())
    said = {"names": names.item(), "cosine": cosine.item(), "guidance": guidance.item()}
    return names + 1 - cosine + GUIDANCE * guidance, said


def main() -> None:
    """Train the vision tower."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="goes on from here if it exists")
    parser.add_argument("--start", help=f"begin with the weights of another run, or with {EMBEDDED_NAME}")
    parser.add_argument("--layers", type=int, default=LAYERS, help="a multiple of those of --start deepens it")
    parser.add_argument("--seconds", type=float, default=2400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--without", nargs="*", default=[], choices=["cifar10"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=float, default=120, help="seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments)


if __name__ == "__main__":
    main()
