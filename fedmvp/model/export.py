"""A prompted model as one program from images to logits, which runs where neither fedmvp nor open_clip is installed.

`torch.export` traces the frozen vision tower, the prompts and the classifier into operations of PyTorch. The trace is
kept in two forms: as PyTorch's own archive, and as a list of operations over named tensors that a dozen lines can run
(`run_program` is them). Attributes are in it as keys and values; the text tower is not.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from fedmvp.errors import UserError
from fedmvp.model.attention import KeysAndValues, keys_that_fit
from fedmvp.model.inference import Predictor
from fedmvp.model.prompted import PromptedModel

TOLERANCE = 1e-4
"""Largest difference between a logit of the program and the model's own."""

_EXAMPLES = 2  # torch.export would take one image for a constant
_IMAGES_FORESEEN = 64
"""For this many images the attention weights stay within `WORKING_BYTES`; a trace fixes the size of its parts."""

Program = list[tuple[str, str, list[Any], dict[str, Any]]]

_SYMBOL_OPERATIONS: dict[Any, str] = {operator.mul: "mul.int", operator.add: "add.int", operator.sub: "sub.int"}
"""Arithmetic on the number of images, by the names that torch.ops.aten has for it."""


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """An exported model.

    Attributes:
        archive: what `torch.export.save` writes.
        program: rows of (result, operation of torch.ops.aten, arguments, keywords), in the order of computation. An
            argument `{"value": name}` is a tensor, the input `images` or an earlier result; a result may take the name
            of one that is not used again. The last row's result is `logits`.
        tensors: every tensor that the program reads, by name.
    """

    archive: ExportedProgram
    program: Program
    tensors: dict[str, Tensor]


class ImageToLogits(nn.Module):
    """Images to logits, in operations that can be traced; everything it reads is registered.

    Args:
        model: the prompted model, on the CPU.
    """

    mean: Tensor
    std: Tensor
    classifier: Tensor

    def __init__(self, model: PromptedModel) -> None:
        super().__init__()
        backbone = model.backbone
        self.tower = backbone.vision_tower
        self.model = model
        self.register_buffer("mean", torch.tensor(backbone.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.image_std).view(1, 3, 1, 1))
        self.register_buffer("classifier", model.bank.classifier)
        self._keep("trained", model.keys_and_values())
        if "anchor" in model.feature_names:
            self.initial = model.initial
            self._keep("start", model.initial_keys_and_values())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (b, n_classes) of uint8 images (b, 3, s, s)."""
        model = self.model
        features = model.summarise((images / 255.0 - self.mean) / self.std)
        prompted = self._answered(features, model.promptformer, "trained")
        anchor = self._answered(features, self.initial, "start") if "anchor" in model.feature_names else None
        feature = model.joined(features["zero_shot"], prompted, anchor)
        return model.with_probe(model.logit_scale * feature @ self.classifier.T, feature)

    def _keep(self, which: str, shared: KeysAndValues) -> None:
        self.register_buffer(f"{which}_key", shared.key)
        self.register_buffer(f"{which}_value", shared.value)

    def _answered(self, features: Mapping[str, Tensor], module: nn.Module, which: str) -> Tensor:
        shared = KeysAndValues(getattr(self, f"{which}_key"), getattr(self, f"{which}_value"))
        config, backbone = self.model.config, self.model.backbone
        queries = max(config.n_prompts, backbone.n_patches)
        at_once = keys_that_fit(_IMAGES_FORESEEN * config.n_heads * queries)
        return self.model.answered(features, module, shared, keys_at_once=at_once)


def export_model(model: PromptedModel) -> ExportedModel:
    """Trace a model and check both forms against it.

    Args:
        model: the prompted model, on the CPU; float32.

    Raises:
        UserError: the tower cannot be traced, or what was traced computes something else.
    """
    size = model.backbone.image_size
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_EXAMPLES, 3, size, size), dtype=torch.uint8, generator=draws)
    whole = ImageToLogits(model).eval()
    with torch.no_grad():
        try:
            archive = torch.export.export(whole, (images,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)
            for name in archive.graph_signature.inputs_to_parameters.values():  # of its own: the model stays trainable
                archive.state_dict[name] = nn.Parameter(archive.state_dict[name].detach(), requires_grad=False)
            exported = ExportedModel(archive, *_listed(archive))
        except Exception as failure:  # torch.export has a dozen kinds of them, most of them internal
            reason = (str(failure).splitlines() or [""])[0][:160]
            raise _not_exportable(model, f"{type(failure).__name__}: {reason}") from failure
        predictor = Predictor(model)
        for part in (images, images[:1]):
            expected = predictor.logits(predictor.feature(predictor.read(part)))
            for answer in (archive.module()(part), run_program(exported.program, exported.tensors, part)):
                if not torch.allclose(answer, expected, rtol=0, atol=TOLERANCE):
                    raise _not_exportable(model, "the traced program computes other logits")
    return exported


def run_program(program: Program, tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Return the logits (b, n_classes) of uint8 images (b, 3, s, s) by a list of operations; see `ExportedModel`."""
    known: dict[str, Any] = {**tensors, "images": images}

    def look(item: Any) -> Any:
        if isinstance(item, dict):
            return known[item["value"]]
        return [look(one) for one in item] if isinstance(item, list) else item

    for result, operation, arguments, keywords in program:
        if "__" in operation:
            raise ValueError(f"{operation} is not an operation")
        known[result] = operator.attrgetter(operation)(torch.ops.aten)(*look(arguments), **keywords)
    logits: Tensor = known["logits"]
    return logits


def _not_exportable(model: PromptedModel, reason: str) -> UserError:
    return UserError(
        f"backbone '{model.backbone.name}' cannot be exported: {reason}",
        remedy="use fedmvp-client predict, and report the backbone's name",
    )


@dataclass(frozen=True)
class _Call:
    """One operation of a trace, on nodes that were not left out."""

    node: Node
    operation: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def inputs(self) -> list[Node]:
        """Each once and in order, so that equal models give equal programs."""
        leaves = tree_leaves((self.arguments, self.keywords))
        return list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Node)))


def _listed(archive: ExportedProgram) -> tuple[Program, dict[str, Tensor]]:
    """Return program and tensors of a trace.

    Raises:
        ValueError: an operation outside torch.ops.aten, or an argument that JSON does not hold.
    """
    signature = archive.graph_signature
    stored = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    calls, logits = _calls(archive)
    last_use = {used: call.node for call in calls for used in call.inputs}
    names = {node: stored.get(node.name, "images") for node in archive.graph.nodes if node.op == "placeholder"}
    values = {**archive.constants, **archive.state_dict}
    read = {name for node, name in names.items() if node in last_use and name != "images"}
    rows: Program = []
    free: list[str] = []
    fresh = itertools.count()
    for call in calls:
        arguments = _as_json(list(call.arguments), names)
        keywords = {name: _as_json(value, names) for name, value in call.keywords.items()}
        free += [names[used] for used in call.inputs if last_use[used] is call.node and used.op != "placeholder"]
        names[call.node] = "logits" if call.node is logits else free.pop() if free else str(next(fresh))
        rows.append((names[call.node], call.operation, arguments, keywords))
    return rows, {name: values[name].detach().contiguous() for name in sorted(read)}


def _calls(archive: ExportedProgram) -> tuple[list[_Call], Node]:
    """Return a trace without what does nothing (assertions, casts to the type a tensor has), and its result."""
    stands_for: dict[Node, Any] = {}
    chunks: dict[Node, Any] = {}
    calls: list[_Call] = []
    for node in archive.graph.nodes:
        if node.op != "call_function" or not node.users:
            continue
        arguments, keywords = (
            map_arg(part, lambda used: stands_for.get(used, used)) for part in (node.args, node.kwargs)
        )
        if node.target is torch.ops.aten.to.dtype and arguments[0].meta["val"].dtype == node.meta["val"].dtype:
            stands_for[node] = arguments[0]
        elif node.target is torch.ops.aten.chunk.default:
            chunks[node] = arguments[0]
        elif node.target is operator.getitem:
            whole, *where = _piece(*arguments)
            calls.append(_Call(node, "slice.Tensor", (chunks[whole], *where), {}))
        else:
            calls.append(_Call(node, _operation(node), arguments, keywords))
    (result,) = archive.graph.output_node().args[0]
    return calls, stands_for.get(result, result)


def _piece(chunk: Any, which: Any) -> tuple[Node, int, int, int]:
    """Return one piece of a chunk as a slice: the chunk, dimension, start, end."""
    if not isinstance(chunk, Node) or chunk.target is not torch.ops.aten.chunk.default:
        raise ValueError("an operation has several results")
    dimension: Any = chunk.args[2] if len(chunk.args) > 2 else 0
    sizes = [int(piece.shape[dimension]) for piece in chunk.meta["val"]]
    return chunk, dimension, sum(sizes[:which]), sum(sizes[: which + 1])


def _operation(node: Node) -> str:
    if node.target in _SYMBOL_OPERATIONS:
        return _SYMBOL_OPERATIONS[node.target]
    if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        raise ValueError(f"operation {node.target} is not one of torch.ops.aten")
    return str(node.target).removeprefix("aten.")


def _as_json(value: Any, names: Mapping[Node, str]) -> Any:
    if isinstance(value, Node):
        return {"value": names[value]}
    if isinstance(value, list | tuple):
        return [_as_json(item, names) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"an argument is a {type(value).__name__}")
