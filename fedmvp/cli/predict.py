"""``fedmvp-client predict``: what tuned prompts see in an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedmvp.cli.presentation import print_json, print_table
from fedmvp.cli.program import say
from fedmvp.client.trainer import choose_device
from fedmvp.data.images import decode_images
from fedmvp.errors import UserError
from fedmvp.model.features import extract_features
from fedmvp.model.from_policy import build_prompted_model
from fedmvp.model.parameters import set_vector
from fedmvp.study.prompts import read_prompts


def print_predictions(
    images: Sequence[Path], prompts_file: Path, *, checkpoint: Path | None, device: str, top: int, style: str
) -> None:
    """Print the likeliest classes of each image.

    Args:
        images: image files.
        prompts_file: the ``prompts.safetensors`` of a run.
        checkpoint: local weights of the backbone.
        device: where the model runs, as [compute] device.
        top: classes shown an image.
        style: "text" or "json".

    Raises:
        UserError: an image, the prompts file or the device cannot be used.
    """
    prompts = read_prompts(prompts_file)
    if prompts.stamp == "UNSAFE-no-dp":
        say("warning: these prompts are stamped UNSAFE-no-dp: trained without differential privacy")
    say(prompts.claim.line)
    model = build_prompted_model(prompts.policy, device=choose_device(device), checkpoint=checkpoint)
    try:
        set_vector(model, prompts.parameters)
    except ValueError as error:
        raise UserError(
            f"{prompts_file} does not fit its own policy: {error}", remedy="get the file again from the run"
        ) from None
    size = model.backbone.image_size
    pixels = decode_images(images, size)
    features = extract_features(model, pixels)
    with torch.no_grad():
        inputs = {name: value.to(model.backbone.device) for name, value in features.tensors.items()}
        probabilities = model.logits(model(inputs)).softmax(dim=-1).cpu().numpy()  # (n_images, n_classes)
    names = prompts.policy.task.class_names
    ranked = [[(names[c], float(row[c])) for c in np.argsort(-row)[:top]] for row in probabilities]
    if style == "json":
        print_json(
            [
                {
                    "image": str(path),
                    "stamp": prompts.stamp,
                    "round": prompts.round,
                    "claim": prompts.claim.line,
                    "classes": [{"name": name, "probability": probability} for name, probability in row],
                }
                for path, row in zip(images, ranked, strict=True)
            ]
        )
        return
    for path, row in zip(images, ranked, strict=True):
        print_table(str(path), ("class", "probability"), ((name, f"{value:.4f}") for name, value in row))
