"""Put the two trained towers together into the two files of an embedded model.

python -m tools.pretrain.distil.export --vision vision.pt --text text.pt --target fedmvp-small.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fedmvp.model.embedded import build_clip, save_embedded
from tools.pretrain.distil.tower import CONFIG, layers_of, with_layers

NORMALISATION = (0.5, 0.5, 0.5)
# Every data set that the weights, their teachers or their settings have seen; a study's own must not be among them.
DATA = (
    "cifar10",
    "fashion-mnist",
    "noto emoji",
    "twemoji",
    "fluent emoji",
    "imagenet",
    "wordnet",
    "texts of all-minilm-l6-v2",
    "firefox os emoji",
    "emojione",
    "streamline emojis",
    "icon sets of iconify",
    "openclipart",
    "panoramas of poly haven",
    "pictures of the getty",
    "pictures of scikit-image",
    "pictures of opencv",
    "pictures of libjxl",
    "lomiri wallpapers",
)


def export(vision: Path, text: Path, target: Path, *, without: frozenset[str]) -> None:
    """Write the embedded model from the averaged vision tower and the text tower."""
    seen, read = (torch.load(path, weights_only=True) for path in (vision, text))
    state = {f"visual.{k}": v for k, v in seen["average"].items() if k != "log_scale"}
    words, used = read["model"], read["used"]
    rows = words.pop("token_embedding.weight")
    vocabulary = int(CONFIG["text_cfg"]["vocab_size"])  # type: ignore[index]
    state["token_embedding.weight"] = torch.zeros(vocabulary, rows.shape[1]).index_copy_(0, used, rows)
    state |= words
    state["logit_scale"] = seen["average"]["log_scale"]
    config = with_layers(layers_of(seen["average"]))
    model = build_clip(config)
    model.load_state_dict(state)
    data = [name for name in DATA if name not in without]
    save_embedded(
        model, {**config, "mean": NORMALISATION, "std": NORMALISATION, "data": data}, target, used[1:].tolist()
    )


def main() -> None:
    """Write the weights and the configuration beside them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--vision", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--without", nargs="*", default=[], choices=["cifar10"], help="as the vision tower was trained")
    parser.add_argument("--target", type=Path, required=True, help="NAME.safetensors; NAME.json goes beside it")
    arguments = parser.parse_args()
    export(arguments.vision, arguments.text, arguments.target, without=frozenset(arguments.without))
    print(f"{arguments.target}: {arguments.target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
