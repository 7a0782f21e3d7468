"""The frozen CLIP model: its sizes, its tokens, its features, its sentences.

Every size is read from the loaded model. Nothing here is trained and nothing here knows prompts; `prompted.py` joins
both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import structlog
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmvp.errors import UserError
from fedmvp.model.clip_library import ResidualAttentionBlock, VisionTransformer
from fedmvp.model.compute import (
    GRADIENT_SCALE,
    BlockRunner,
    Precision,
    TowerOptions,
    autocast,
    preferred_precision,
    scale_gradient,
)

_HASH_TAG = b"fedmvp/backbone-state/v1"
_SENTENCES_AT_ONCE = 256

_LEAST_AGREEMENT = 0.999
"""Cosine between features in float16 and in float32; bfloat16, which everybody trains with, stays above it too."""

log = structlog.get_logger("fedmvp.model")


class Tokenizer(Protocol):
    """open_clip's tokenizer, as far as it is used here."""

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        """Return token ids (n, context_length)."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of one text, without start and end."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids."""


class Backbone:
    """A frozen CLIP with a class-token vision transformer.

    Args:
        model: an open_clip CLIP model.
        tokenizer: the tokenizer that goes with it.
        name: the name shown to people.
        image_mean: channel means that images are normalised with, in [0, 1].
        image_std: channel deviations that images are normalised with.
        device: where the tower runs.
        options: how it runs.

    Raises:
        UserError: the vision tower has no class token.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        device: torch.device | str = "cpu",
        options: TowerOptions | None = None,
    ) -> None:
        visual = model.visual
        if not isinstance(visual, VisionTransformer) or visual.pool_type != "tok" or visual.attn_pool is not None:
            raise UserError(
                f"backbone '{name}' cannot be used: its image feature does not come from a class token",
                remedy="use a plain vision transformer such as ViT-B-32, ViT-B-16 or ViT-L-14",
            )
        self.device = torch.device(device)
        self.name = name
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.image_mean = tuple(float(value) for value in image_mean)
        self.image_std = tuple(float(value) for value in image_std)
        self._visual: Any = visual
        self._clip: Any = self.model
        self._tokenizer = tokenizer
        self._state_hash: str | None = None
        options = options or TowerOptions()
        self._run_block = BlockRunner(options)
        self._pixel_format = torch.channels_last if options.channels_last else torch.contiguous_format
        self._visual.conv1.to(memory_format=self._pixel_format)
        self._precision = options.precision
        if options.precision is Precision.AUTO:
            self._precision = self._safe_precision(preferred_precision(self.device))

    def __repr__(self) -> str:
        return (
            f"Backbone({self.name}, {self.image_size} px, {self.n_patches} patches, {self.n_layers} blocks, "
            f"vision width {self.vision_width}, joint width {self.joint_width})"
        )

    @property
    def vision_tower(self) -> nn.Module:
        """The vision tower, as open_clip built it."""
        tower: nn.Module = self._visual
        return tower

    @property
    def vision_width(self) -> int:
        """Width of a vision token."""
        return int(self._visual.conv1.weight.shape[0])

    @property
    def joint_width(self) -> int:
        """Width of the space that images and sentences share."""
        return int(self._visual.proj.shape[1])

    @property
    def image_size(self) -> int:
        """Side of the square input image, pixels."""
        return int(self._visual.image_size[0])

    @property
    def n_patches(self) -> int:
        """Patch tokens an image, without the class token."""
        return int(self._visual.positional_embedding.shape[0]) - 1

    @property
    def n_layers(self) -> int:
        """Blocks of the vision tower."""
        return len(self._visual.transformer.resblocks)

    @property
    def logit_scale(self) -> float:
        """The frozen factor between a cosine and a logit."""
        return float(self._clip.logit_scale.detach().exp())

    @property
    def last_block(self) -> ResidualAttentionBlock:
        """The last block of the vision tower.

        Raises:
            UserError: it is not of the usual kind, whose attention can be split between old and new tokens.
        """
        block = self._visual.transformer.resblocks[-1]
        if not isinstance(block, ResidualAttentionBlock):
            raise UserError(
                f"backbone '{self.name}' has blocks of its own kind, which last-block injection cannot split",
                remedy='set [model] injection = "input", or choose another backbone',
            )
        return block

    def state_hash(self) -> str:
        """Return the SHA-256 of the weights (name, shape, float32 little-endian bytes), as 64 hex digits."""
        if self._state_hash is None:
            state = hashlib.sha256(_HASH_TAG)
            for name, value in sorted(self.model.state_dict().items()):
                array = value.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
                state.update(f"{name}{tuple(array.shape)}".encode())
                state.update(array.data)
            self._state_hash = state.hexdigest()
        return self._state_hash

    @property
    def precision(self) -> str:
        """What the frozen tower computes in."""
        return str(self._precision)

    def frozen_compute(self) -> AbstractContextManager[Any]:
        """Return the context the frozen tower runs in: autocast to its precision."""
        return autocast(self.device, self._precision)

    def normalise(self, images: Tensor) -> Tensor:
        """Return uint8 images (b, 3, s, s) as the float input of the tower, on its device."""
        mean = torch.tensor(self.image_mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.image_std, device=self.device).view(1, 3, 1, 1)
        pixels = images.to(self.device, non_blocking=True).float()
        return ((pixels / 255.0 - mean) / std).contiguous(memory_format=self._pixel_format)

    def embed(self, pixels: Tensor) -> Tensor:
        """Return class token and patches with their positions, before `ln_pre`: (b, 1 + n_patches, vision_width)."""
        visual = self._visual
        patches: Tensor = visual.conv1(pixels).flatten(2).transpose(1, 2)  # (b, n_patches, vision_width)
        first: Tensor = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        positions: Tensor = visual.positional_embedding.to(patches.dtype)
        return torch.cat([first, patches], dim=1) + positions

    def enter(self, tokens: Tensor) -> Tensor:
        """Apply what lies between the embedding and the first block."""
        entered: Tensor = self._visual.ln_pre(tokens)
        return entered

    def run_blocks(self, tokens: Tensor, *, stop: int | None = None) -> Tensor:
        """Run the blocks up to `stop` (as in a slice) over tokens (b, n, vision_width)."""
        transformer = self._visual.transformer
        states: Tensor = tokens if transformer.batch_first else tokens.transpose(0, 1)
        for block in transformer.resblocks[:stop]:
            states = self._run_block(block, states)
        return states if transformer.batch_first else states.transpose(0, 1)

    def project(self, class_token: Tensor) -> Tensor:
        """Map the last class token (b, vision_width) to the normalised image feature (b, joint_width), float32."""
        feature: Tensor = self._visual.ln_post(class_token) @ self._visual.proj
        return F.normalize(feature.float(), dim=-1)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return zero-shot CLIP's normalised features (b, joint_width) of normalised pixels."""
        _, leaving = self.tokens_of(pixels)
        with torch.no_grad():
            return self.project(leaving[:, 0])

    @torch.no_grad()
    def tokens_of(self, pixels: Tensor, *, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens of images as they enter the tower and as they leave its blocks, float32.

        Images that overflow in float16 are computed again in float32.

        Args:
            pixels: normalised images (b, 3, s, s).
            stop: as for `run_blocks`.

        Returns:
            Before `ln_pre` and after the blocks, each (b, 1 + n_patches, vision_width).
        """
        embedded, leaving = self._tokens_of(pixels, stop, self._precision)
        if self._precision is Precision.FLOAT16 and not bool(leaving.isfinite().all() & embedded.isfinite().all()):
            embedded, leaving = self._tokens_of(pixels, stop, Precision.FLOAT32)
        return embedded, leaving

    def finish(self, tokens: Tensor) -> Tensor:
        """Run tokens (b, n, vision_width) from before `ln_pre` to the normalised feature (b, joint_width), float32.

        Gradients flow through the tower to the tokens.
        """
        in_float16 = self._precision is Precision.FLOAT16
        if in_float16:
            tokens = scale_gradient(tokens, 1 / GRADIENT_SCALE)
        with self.frozen_compute():
            leaving = self.run_blocks(self.enter(tokens))
        class_token = leaving[:, 0].float()
        return self.project(scale_gradient(class_token, GRADIENT_SCALE) if in_float16 else class_token)

    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Return the normalised features (n, joint_width) of sentences, float32 on the backbone's device.

        Raises:
            UserError: a sentence has more tokens than the text tower reads; it is never cut silently.
        """
        self._refuse_long(sentences)
        return torch.cat(list(self._encode_in_parts(sentences)))

    def unknown_words(self, sentences: Sequence[str]) -> tuple[str, ...]:
        """Return the word pieces the text tower never saw: those whose embedding is all zero (the embedded model's)."""
        embedding = next(m for m in self.model.modules() if isinstance(m, nn.Embedding))
        known = (embedding.weight != 0).any(dim=1).tolist()
        pieces = {token for sentence in sentences for token in self._tokenizer.encode(sentence) if not known[token]}
        return tuple(sorted(self._tokenizer.decode([token]).strip() for token in pieces))

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, without start and end."""
        return len(self._tokenizer.encode(text))

    def tokenise(self, sentences: Sequence[str]) -> Tensor:
        """Return the token ids of sentences (n, context_length) on the backbone's device.

        Raises:
            UserError: a sentence has more tokens than the text tower reads.
        """
        self._refuse_long(sentences)
        return self._tokenizer(list(sentences), context_length=int(self._clip.context_length)).to(self.device)

    def _refuse_long(self, sentences: Sequence[str]) -> None:
        room = int(self._clip.context_length) - 2  # start and end of text
        for sentence in sentences:
            if (length := len(self._tokenizer.encode(sentence))) > room:
                raise UserError(
                    f"the sentence '{sentence}' has {length} tokens; backbone '{self.name}' reads {room}",
                    remedy="shorten the attribute in [task] of the policy",
                )

    def _tokens_of(self, pixels: Tensor, stop: int | None, precision: Precision) -> tuple[Tensor, Tensor]:
        with autocast(self.device, precision):
            embedded = self.embed(pixels)
            leaving = self.run_blocks(self.enter(embedded), stop=stop)
        return embedded.float(), leaving.float()

    def _safe_precision(self, preferred: Precision) -> Precision:
        """Return float16 only for a tower that gives about the same features in it, seen on invented images."""
        if preferred is not Precision.FLOAT16:
            return preferred
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randn(4, 3, self.image_size, self.image_size, generator=draws).to(self.device)
        with torch.no_grad():
            found = [
                self.project(self._tokens_of(pixels, None, precision)[1][:, 0])
                for precision in (Precision.FLOAT16, Precision.FLOAT32)
            ]
        agreement = float((found[0] * found[1]).sum(dim=-1).min())
        if agreement > _LEAST_AGREEMENT:  # false where it is not a number
            return Precision.FLOAT16
        log.info("the tower runs in float32: float16 changes its features", backbone=self.name)
        return Precision.FLOAT32

    def _encode_in_parts(self, sentences: Sequence[str]) -> Iterator[Tensor]:
        for start in range(0, len(sentences), _SENTENCES_AT_ONCE):
            part = list(sentences[start : start + _SENTENCES_AT_ONCE])
            ids = self._tokenizer(part, context_length=int(self._clip.context_length)).to(self.device)
            with torch.no_grad():  # in float32 everywhere: once a study, and the classifier is every site's
                features = self._clip.encode_text(ids)
            yield F.normalize(features.float(), dim=-1)
