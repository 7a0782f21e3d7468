"""``export``: tuned prompts as a module that runs without fedmvp, in a folder that is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fedmvp import __version__
from fedmvp.cli.predict import announce, model_of
from fedmvp.cli.presentation import print_json
from fedmvp.cli.program import say, stdout
from fedmvp.errors import UserError
from fedmvp.model.export import TOLERANCE, ExportedModel, export_model
from fedmvp.model.prompted import PromptedModel
from fedmvp.study.prompts import CLAIM, Prompts, read_prompts
from fedmvp.study.storage import PUBLIC_MODE, whole_folder

FORMAT = "fedmvp-module-v1"
ARCHIVE = "model.pt2"
TENSORS = "model.safetensors"
DESCRIPTION = "module.json"
README = "README.md"

PREPROCESSING = """\
import numpy, torch
from PIL import Image, ImageOps
def read(path, size={size}):  # of 8 bits, without transparency
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    picture = ImageOps.fit(picture, (size, size), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[None]  # uint8 (1, 3, size, size)
"""

ARCHIVE_LOADER = """\
import torch
logits_of = torch.export.load("model.pt2").module()
"""

TENSORS_LOADER = """\
import json, operator, safetensors, torch
with safetensors.safe_open("model.safetensors", framework="pt") as file:
    tensors, program = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["program"])
def logits_of(images):  # uint8 (n, 3, size, size) -> (n, n_classes)
    known = {**tensors, "images": images}
    look = lambda x: known[x["value"]] if type(x) is dict else [*map(look, x)] if type(x) is list else x
    for result, operation, arguments, keywords in program:
        if "__" in operation: raise ValueError(operation)  # operations of PyTorch, nothing else that Python has
        known[result] = operator.attrgetter(operation)(torch.ops.aten)(*look(arguments), **keywords)
    return known["logits"]
"""
"""Everything it takes to run `TENSORS`: each row of the program is one operation of PyTorch."""


def export_prompts(prompts_file: Path, folder: Path, *, checkpoint: Path | None, style: str) -> None:
    """Write the module of a prompts file into a new folder, and say what is in it.

    Args:
        prompts_file: the ``prompts.safetensors`` of a run.
        folder: where to; must not exist, or be empty.
        checkpoint: local weights of the backbone, or None.
        style: "text" or "json".

    Raises:
        UserError: the prompts file, the backbone or the folder cannot be used, or the tower cannot be traced.
    """
    with whole_folder(folder) as staged:
        prompts = read_prompts(prompts_file)
        announce(prompts)
        model = model_of(prompts, prompts_file, checkpoint=checkpoint)
        exported = export_model(model)
        description = _describe(prompts, model)
        _write_module(staged, exported, prompts, description)
        description["files"] = {name: _facts(staged / name) for name in (ARCHIVE, TENSORS)}
        (staged / DESCRIPTION).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (staged / README).write_text(_readme(description, prompts), "utf-8")
        for file in staged.iterdir():
            file.chmod(PUBLIC_MODE)
    for name, facts in description["files"].items():
        say(f"{folder / name}: {facts['bytes'] / 1e6:,.1f} MB, complete by itself")
    say(f"in each: {description['contains']}")
    if style == "json":
        print_json({"folder": str(folder), **description})
    else:
        stdout().print(str(folder), soft_wrap=True)


def _describe(prompts: Prompts, model: PromptedModel) -> dict[str, Any]:
    section, backbone, size = prompts.policy.model, model.backbone, model.backbone.image_size
    trained = "the prompts and the probe" if section.probe_gain else "the prompts"
    named = f"{section.backbone} ({section.pretrained})" if section.pretrained else section.backbone
    return {
        "format": FORMAT,
        "stamp": prompts.claim.stamp,
        "claim": prompts.claim.line,
        CLAIM: prompts.claim.as_json(),
        "run_id": prompts.policy.study.run_id,
        "round": prompts.round,
        "policy_sha256": hashlib.sha256(prompts.policy.document).hexdigest(),
        "contains": f"the frozen vision tower of {named}, under its publisher's licence, {trained} after round "
        f"{prompts.round} and {len(model.bank.class_names)} classes; no text tower, no image, no key",
        "backbone": {"name": section.backbone, "pretrained": section.pretrained, "state_sha256": backbone.state_hash()},
        "classes": list(model.bank.class_names),
        "input": {
            "name": "images",
            "shape": ["batch", 3, size, size],
            "dtype": "uint8",
            "channels": "RGB",
            "preprocessing": "apply the orientation tag, put transparent pixels on white, stretch deeper grey values "
            f"to 8 bits, convert to RGB, crop to a centred square and scale it to {size} x {size}, bicubic; the module "
            "normalises",
        },
        "output": {"name": "logits", "shape": ["batch", len(model.bank.class_names)], "tolerance": TOLERANCE},
        "software": {"fedmvp": __version__, "torch": torch.__version__},
    }


def _write_module(folder: Path, exported: ExportedModel, prompts: Prompts, description: Mapping[str, Any]) -> None:
    carried = {
        "format": FORMAT,
        "stamp": prompts.claim.stamp,
        CLAIM: prompts.claim.to_text(),
        "policy": prompts.policy.document.decode(),
        "round": str(prompts.round),
        "description": json.dumps(description),
    }
    try:
        torch.export.save(exported.archive, folder / ARCHIVE, extra_files=carried)
        save_file(exported.tensors, folder / TENSORS, {**carried, "program": json.dumps(exported.program)})
    except (RuntimeError, SafetensorError) as error:  # what PyTorch and safetensors make of a full disk
        raise UserError(
            f"the module cannot be written: {str(error).splitlines()[0][:160]}",
            remedy="make room for twice the backbone's weights, or choose a folder on another disk",
        ) from error


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _readme(description: Mapping[str, Any], prompts: Prompts) -> str:
    rows = "\n".join(f"| {name} | {text} |" for name, text in prompts.claim.rows())
    warning = f"**{prompts.claim.stamp}: trained without differential privacy.**\n\n" if prompts.claim.is_unsafe else ""
    return f"""\
# {prompts.policy.study.title}

{warning}A classifier of images, as a program: uint8 images (n, 3, {description["input"]["shape"][2]}, \
{description["input"]["shape"][2]}) in, logits (n, {len(description["classes"])}) out. It runs without fedmvp.

It holds {description["contains"]}. `{DESCRIPTION}` lists classes, preprocessing, hashes and the claim for programs.

## What is promised of the data it was trained on

{description["claim"]}

| | |
|---|---|
{rows}

The same card is in both files, under `{CLAIM}`. It is not signed: compare it with the study's signed policy.

## Use

Read an image ({description["input"]["preprocessing"]}):

```python
{PREPROCESSING.format(size=description["input"]["shape"][2])}```

Either file is complete by itself. `{ARCHIVE}` needs PyTorch ({description["software"]["torch"]} wrote it):

```python
{ARCHIVE_LOADER}```

`{TENSORS}` needs PyTorch and safetensors, holds tensors and text only, and runs on any device (`safe_open` takes one):

```python
{TENSORS_LOADER}```

`logits_of(read("image.png")).softmax(-1)` are the probabilities of the classes, in the order of `{DESCRIPTION}`.
"""
