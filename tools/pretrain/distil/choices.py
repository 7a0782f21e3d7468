"""How well a vision tower tells what was kept back from training, for choices: right among ten names, chance 0.1.

    python -m tools.pretrain.distil.choices --vision unseen.pt --corpus CORPUS

Nine names are drawn at random beside the image's own: of ImageNet's for views of scenes (their own is the teacher's
first, where it is sure of it), of the bank's for drawings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.pretrain.distil.scenes import HELD_OUT, load_coloured
from tools.pretrain.distil.sources import IMAGENET_CLASSES, find_things, load_bank, load_lines
from tools.pretrain.distil.tower import build, layers_of

OTHERS, SURE = 9, 0.3


@torch.no_grad()
def judge(model: torch.nn.Module, corpus: Path, bank: Tensor) -> dict[str, float]:
    """The share told right of views of scenes, of drawings in scenes, and of drawings of two kinds on white."""
    was_training = model.training
    model.eval()
    kept = torch.load(corpus / "held_out.pt", weights_only=True)
    seen, sure = kept["logits"].float().argmax(1), kept["logits"].float().softmax(1).amax(1) > SURE
    plain = kept["names"] < 0
    found = {
        "scenes": tell(model, kept["pixels"][plain & sure], seen[plain & sure], bank[:IMAGENET_CLASSES]),
        "in scenes": tell(model, kept["pixels"][~plain], kept["names"][~plain], bank),
    }
    things = find_things(bank)
    for kind, (pixels, names) in {"coloured": load_coloured(corpus), "line": load_lines(corpus)}.items():
        chosen = torch.tensor([i for i in range(0, len(names), HELD_OUT) if things[names[i]]])
        drawn = pixels[chosen].float()
        on_white = drawn[:, :3] * drawn[:, 3:] / 255 + 255 - drawn[:, 3:]
        found[kind] = tell(model, on_white, names[chosen], bank)
    model.train(was_training)
    return {key: round(value, 4) for key, value in found.items()}


def tell(model: torch.nn.Module, pixels: Tensor, own: Tensor, names: Tensor) -> float:
    """The share of images (n, 3, 64, 64), 0 to 255, whose feature is nearest to their own name's among ten."""
    features = torch.cat([model(part.float() / 127.5 - 1) for part in pixels.split(200)])
    others = torch.randint(len(names), (len(own), OTHERS), generator=torch.Generator().manual_seed(1))
    ten = names[torch.cat([own[:, None], others], 1)]
    likeness = (F.normalize(features, dim=-1)[:, None] * ten).sum(-1)
    return (likeness.argmax(1) == 0).float().mean().item()


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--vision", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    arguments = parser.parse_args()
    average = torch.load(arguments.vision, weights_only=True)["average"]
    model = build(layers_of(average))
    model.load_state_dict(average)
    print(json.dumps(judge(model, arguments.corpus, load_bank(arguments.corpus))))


if __name__ == "__main__":
    main()
