"""The vision tower that is trained: open_clip's, with a quicker attention, its start, and a view of its patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmvp.model.clip_library import open_clip
from fedmvp.model.embedded import load_embedded
from fedmvp.model.supported import EMBEDDED_NAME
from tools.pretrain.distil.views import PIXELS
from tools.pretrain.train import start_like_a_trained_tower

LAYERS = 4
BLOCKS = "transformer.resblocks."
CONFIG: dict[str, Any] = {
    "embed_dim": 384,
    "vision_cfg": {"image_size": PIXELS, "layers": LAYERS, "width": 160, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 160, "heads": 5, "layers": 2},
}


def with_layers(layers: int) -> dict[str, Any]:
    """The configuration of a tower whose images go through so many blocks."""
    return {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "layers": layers}}


def build(layers: int = LAYERS) -> torch.nn.Module:
    """The vision tower at its start, with the scale of its logits."""
    config = with_layers(layers)
    config["text_cfg"] = {"context_length": 8, "vocab_size": 8, "width": 32, "heads": 1, "layers": 1}
    visual: torch.nn.Module = open_clip.CLIP(**config).visual
    start_like_a_trained_tower(visual)
    visual.patch_dropout = open_clip.transformer.PatchDropout(0.0)
    for block in visual.transformer.resblocks:
        block.attn.__class__ = QuickAttention
    visual.log_scale = torch.nn.Parameter(torch.tensor(math.log(15.0)))
    return visual


class QuickAttention(torch.nn.MultiheadAttention):
    """The same attention as two products of matrices.

    On a processor, torch's fused kernel takes most of a training step where tokens are as few as these.
    """

    def forward(self, query: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:  # type: ignore[override]
        """Self-attention of ``(n, tokens, width)`` without a mask; what else the block passes is the same tensor."""
        n, tokens, _width = query.shape
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        parts = projected.view(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.reshape(3, n * self.num_heads, tokens, self.head_dim).unbind(0)
        shares = torch.bmm(queries * self.head_dim**-0.5, keys.mT).softmax(-1).to(values.dtype)
        seen = torch.bmm(shares, values).view(n, self.num_heads, tokens, self.head_dim).transpose(1, 2)
        return F.linear(seen.flatten(2), self.out_proj.weight, self.out_proj.bias), None


def begin_with(start: str, model: torch.nn.Module, average: torch.nn.Module, guide: torch.nn.Module) -> None:
    """Take over the weights of another run, or of ``fedmvp-tiny``.

    The 8 x 8 patches of 4 px of ``fedmvp-tiny`` are ours of 8 px seen at half the size: a kernel of 8 px that repeats
    each weight in a square of two pixels, divided by four, does on the image what the kernel of 4 px does on the image
    shrunk by two. So the start gives its features exactly. Only the projection is new.
    """
    if start != EMBEDDED_NAME:
        saved = torch.load(start, weights_only=True)
        for module, name in ((model, "model"), (average, "average")):
            module.load_state_dict(deepened(saved[name], layers_of(module.state_dict())))
        guide.load_state_dict(saved["guide"])
        return
    small = load_embedded()[0].visual.state_dict()
    del small["proj"]
    small["conv1.weight"] = small["conv1.weight"].repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    for module in (model, average):
        found = module.load_state_dict(small, strict=False)
        if found.unexpected_keys or set(found.missing_keys) != {"proj", "log_scale"}:
            raise SystemExit(f"{EMBEDDED_NAME} does not fit: {found}")


def layers_of(state: Mapping[str, Tensor]) -> int:
    """How many blocks a vision tower's parameters are of."""
    return 1 + max(int(name.split(".")[2]) for name in state if name.startswith(BLOCKS))


def deepened(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The same function in more blocks: a copy behind each block that adds nothing until it is trained.

    Raises:
        SystemExit: the number of blocks is no multiple of what there is.
    """
    each, left = divmod(layers, layers_of(state))
    if left or not each:
        raise SystemExit(f"{layers_of(state)} blocks do not become {layers}: give a multiple as --layers")
    grown = {name: value for name, value in state.items() if not name.startswith(BLOCKS)}
    for name, value in state.items():
        if name.startswith(BLOCKS):
            _, _, block, part = name.split(".", 3)
            ends = part.startswith(("attn.out_proj.", "mlp.c_proj."))
            for turn in range(each):
                place = f"{BLOCKS}{int(block) * each + turn}.{part}"
                grown[place] = torch.zeros_like(value) if ends and turn else value
    return grown


def see(model: torch.nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the tower sees images ``(b, 3, 64, 64)`` in [0, 1], also what became of the patches that it was shown.

    Returns:
        Features (b, 384), patches (b, shown, width) behind the last norm, and the place of each (b, shown).
    """
    x = model.conv1(images * 2 - 1).flatten(2).mT  # type: ignore[operator]
    n, patches, width = x.shape
    x = x + model.positional_embedding[1:]
    shown = torch.rand(n, patches).topk(max(1, round(patches * (1 - model.patch_dropout.prob)))).indices  # type: ignore[union-attr, operator]
    x = x.gather(1, shown[:, :, None].expand(-1, -1, width))
    first = (model.class_embedding + model.positional_embedding[0]).to(x.dtype).expand(n, 1, -1)  # type: ignore[operator, index, union-attr]
    x = model.ln_post(model.transformer(model.ln_pre(torch.cat([first, x], 1))))  # type: ignore[operator]
    return x[:, 0] @ model.proj, x[:, 1:], shown
