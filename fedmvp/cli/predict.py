"""``fedmvp-client predict``: what tuned prompts see in images."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmvp.cli.presentation import print_json, print_table
from fedmvp.cli.program import say
from fedmvp.client.trainer import choose_device
from fedmvp.data.dataset import IMAGE_SUFFIXES
from fedmvp.data.images import decode_image
from fedmvp.errors import UserError
from fedmvp.model.from_policy import build_prompted_model
from fedmvp.model.inference import Predictor
from fedmvp.model.parameters import set_vector
from fedmvp.model.prompted import PromptedModel
from fedmvp.study.prompts import Prompts, read_prompts

_DECODING_THREADS = 4
_BATCHES_AHEAD = 2
_NAMED_AT_MOST = 5


@dataclass(frozen=True)
class PredictOptions:
    """How images are classified.

    Attributes:
        checkpoint: local weights of the backbone, or None.
        cache: where text features are kept between calls, or None.
        device: where the model runs, as [compute] device.
        top: classes shown an image.
        batch_size: images at once.
        style: "text" or "json".
    """

    checkpoint: Path | None
    cache: Path | None
    device: str
    top: int
    batch_size: int
    style: str


@dataclass(frozen=True)
class _Batch:
    """Decoded images, and those that could not be."""

    paths: list[Path]
    images: list[Tensor]
    unreadable: list[tuple[Path, UserError]]


def print_predictions(given: Sequence[Path], prompts_file: Path, options: PredictOptions) -> None:
    """Print the likeliest classes of each image; one that cannot be read does not stop the others.

    Args:
        given: image files, and folders that are searched for images.
        prompts_file: the ``prompts.safetensors`` of a run.
        options: see :class:`PredictOptions`.

    Raises:
        UserError: a folder without images, the prompts file or the device cannot be used; or, when everything else was
            printed, images that could not be read.
    """
    paths = _image_paths(given)
    prompts = read_prompts(prompts_file)
    announce(prompts)
    model = model_of(prompts, prompts_file, checkpoint=options.checkpoint, cache=options.cache, device=options.device)
    predictor, names = Predictor(model), prompts.policy.task.class_names
    shown: list[dict[str, Any]] = []
    unreadable: list[tuple[Path, UserError]] = []
    for batch in _decoded(paths, model.backbone.image_size, options.batch_size):
        unreadable += batch.unreadable
        if not batch.images:
            continue
        ranking = predictor.rank(predictor.feature(predictor.read(torch.stack(batch.images))), options.top)
        for path, classes, values in zip(
            batch.paths, ranking.classes.tolist(), ranking.probabilities.tolist(), strict=True
        ):
            likeliest = [(names[place], value) for place, value in zip(classes, values, strict=True)]
            if options.style == "text":
                print_table(str(path), ("class", "probability"), ((name, f"{value:.4f}") for name, value in likeliest))
            else:
                listed = [{"name": name, "probability": value} for name, value in likeliest]
                shown.append({"image": str(path), "classes": listed})
    if options.style == "json":
        print_json(
            {
                "stamp": prompts.claim.stamp,
                "round": prompts.round,
                "claim": prompts.claim.line,
                "images": shown,
                "unreadable": [{"image": str(path), "error": error.what} for path, error in unreadable],
            }
        )
    if unreadable:
        raise _unreadable_error(unreadable, len(paths))


def announce(prompts: Prompts) -> None:
    """Tell the person what is promised of prompts, and warn where nothing is."""
    if prompts.claim.is_unsafe:
        say("warning: these prompts are stamped UNSAFE-no-dp: trained without differential privacy")
    say(prompts.claim.line)


def model_of(
    prompts: Prompts, prompts_file: Path, *, checkpoint: Path | None, cache: Path | None = None, device: str = "cpu"
) -> PromptedModel:
    """Return the model of a prompts file, with its parameters.

    Raises:
        UserError: the backbone or the device cannot be used, or the parameters do not fit.
    """
    model = build_prompted_model(prompts.policy, device=choose_device(device), checkpoint=checkpoint, cache_dir=cache)
    try:
        set_vector(model, prompts.parameters)
    except ValueError as error:
        raise UserError(
            f"{prompts_file} does not fit its own policy: {error}", remedy="get the file again from the run"
        ) from None
    return model


def _image_paths(given: Sequence[Path]) -> list[Path]:
    """Return the files in the order given; a folder stands for the images below it, by name."""
    paths: list[Path] = []
    for path in given:
        if not path.is_dir():
            paths.append(path)
            continue
        found = sorted(item for item in path.rglob("*") if item.suffix.lower() in IMAGE_SUFFIXES and item.is_file())
        if not found:
            raise UserError(
                f"folder {path} holds no images",
                remedy=f"name files, or a folder with images; known types: {', '.join(sorted(IMAGE_SUFFIXES))}",
            )
        paths += found
    return paths


def _decoded(paths: Sequence[Path], image_size: int, batch_size: int) -> Iterator[_Batch]:
    """Yield batches in order; the next ones are decoded while one is being looked at."""
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        ahead: deque[list[tuple[Path, Future[Tensor]]]] = deque()
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            ahead.append([(path, pool.submit(decode_image, path, image_size)) for path in part])
            if len(ahead) > _BATCHES_AHEAD:
                yield _collected(ahead.popleft())
        while ahead:
            yield _collected(ahead.popleft())


def _collected(waiting: Sequence[tuple[Path, Future[Tensor]]]) -> _Batch:
    batch = _Batch([], [], [])
    for path, future in waiting:
        try:
            batch.images.append(future.result())
            batch.paths.append(path)
        except UserError as error:
            batch.unreadable.append((path, error))
    return batch


def _unreadable_error(unreadable: Sequence[tuple[Path, UserError]], total: int) -> UserError:
    first = unreadable[0][1]
    if total == 1:
        return first
    named = "; ".join(error.what for _, error in unreadable[:_NAMED_AT_MOST])
    more = f"; and {len(unreadable) - _NAMED_AT_MOST} more" if len(unreadable) > _NAMED_AT_MOST else ""
    return UserError(
        f"{len(unreadable)} of {total} images could not be read: {named}{more}",
        remedy="replace these files or leave them out; the other images were classified",
    )
