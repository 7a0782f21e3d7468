"""Class features from the frozen text tower when the first words of every sentence are trained vectors.

All samples share one computation: the class features depend on what is trained and on no image. Its gradient must be
told apart by sample all the same. A sample's gradient by the class features (n_classes, joint_width) is its own; what
is shared is the map from words to class features, and the gradient of a sample is its own cotangent pulled back
through that map. Two exact ways, chosen by cost:

- one replica of the sentences for each sample, B backward passes;
- the Jacobian of the class features by the words, kept while the words stay the same, so that all parts of a batch, and
  all sites that share a module, use one. It is the product of two: that of the states at the ends of the sentences, one
  backward pass for each of their text_width numbers, and that of what follows, which joins no two sentences.

Where no gradient by sample is read, the features are computed and differentiated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedmvp.errors import UserError
from fedmvp.model.backbone import Backbone

WORKING_BYTES = 2**29
"""What the activations of the replicas that run together may take, as far as it can be foreseen: 512 MiB."""

JACOBIAN_BYTES = 2**29
"""Largest Jacobian that is formed, 512 MiB; above, every sample has its own backward pass."""

_FLOATS_A_TOKEN_AND_LAYER = 20
"""Numbers that a block keeps for the backward pass, in widths of a token: inputs, queries to values, the wide layer."""


class PromptedText:
    """Sentences of classes whose first words can be replaced.

    Args:
        backbone: the frozen CLIP.
        sentences: for each class its sentences, at least one.
        words: what every sentence starts with.

    Raises:
        UserError: a text tower that does not read from left to right, a sentence that is too long or does not start
            with the words, or no words at all.
    """

    def __init__(self, backbone: Backbone, sentences: Sequence[Sequence[str]], words: str) -> None:
        self._backbone = backbone
        self._tower = _text_tower(backbone)
        flat = [sentence for of_class in sentences for sentence in of_class]
        self.n_words = backbone.count_tokens(words)
        ids = backbone.tokenise(flat)
        first = backbone.tokenise([words])[:, 1 : 1 + self.n_words]
        if not self.n_words or bool((ids[:, 1 : 1 + self.n_words] != first).any()):
            raise UserError(
                f"a sentence does not start with the words '{words}' that are to be trained",
                remedy="let the template start with a few words, then {name}",
            )
        self._ends = ids.argmax(dim=-1)  # the end of text has the highest id
        self._length = int(self._ends.max()) + 1  # nothing behind an end is read
        with torch.no_grad():
            self._embedded: Tensor = self._tower.token_embedding(ids[:, : self._length]).float()
        self._initial_words = self._embedded[0, 1 : 1 + self.n_words].clone()
        self._unit = self._initial_words.square().mean().sqrt().clamp_min(1e-6)
        sizes = torch.tensor([len(of_class) for of_class in sentences], device=backbone.device)
        self._sizes = sizes.float()[:, None]
        self._class_of = torch.arange(len(sizes), device=backbone.device).repeat_interleave(sizes)
        self._kept: tuple[Tensor, Tensor] | None = None
        with torch.no_grad():
            frozen = self._means(backbone.encode_sentences(flat)[None])
            self._precision_gap = frozen - self._features(self._initial_words[None])

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self._sizes)

    @property
    def text_width(self) -> int:
        """Width of a word."""
        return int(self._embedded.shape[-1])

    def moved_words(self, shift: Tensor) -> Tensor:
        """Return the sentences' own first words plus a shift, in units of their root mean square.

        Embeddings of words are small numbers; in this unit a shift has the size of other trained parameters.

        Args:
            shift: (..., n_words, text_width).
        """
        moved: Tensor = self._initial_words + self._unit * shift
        return moved

    def features(self, words: Tensor) -> Tensor:
        """Return class features, the mean over a class's sentences of their normalised features.

        Computed in float32 throughout. The frozen tower may run in a lower precision elsewhere; its features of the
        sentences' own words are met by a constant, so that the start is zero-shot in any precision.

        Args:
            words: replicas of the first words (r, n_words, text_width), or of those of each class (r, n_classes,
                n_words, text_width).

        Returns:
            (r, n_classes, joint_width), float32.
        """
        return self._features(words) + self._precision_gap

    def _features(self, words: Tensor) -> Tensor:
        by_class = words[:, None].expand(-1, self.n_classes, -1, -1) if words.dim() == 3 else words
        replicas = len(by_class)
        chosen = by_class[:, self._class_of]  # (r, n_sentences, n_words, text_width)
        sentences = self._finish(self._end_states(self._with_words(chosen), self._ends.repeat(replicas)))
        return self._means(sentences.reshape(replicas, len(self._ends), self._backbone.joint_width))

    def _with_words(self, chosen: Tensor) -> Tensor:
        """The embedded sentences (r * n_sentences, ...) with words (r, n_sentences, n_words, text_width)."""
        embedded = self._embedded.expand(len(chosen), -1, -1, -1)
        return torch.cat([embedded[:, :, :1], chosen, embedded[:, :, 1 + self.n_words :]], dim=2).flatten(0, 1)

    def _means(self, sentences: Tensor) -> Tensor:
        """The mean of each class's rows of (r, n_sentences, joint_width)."""
        summed = sentences.new_zeros((len(sentences), self.n_classes, sentences.shape[-1]))
        means: Tensor = summed.index_add(1, self._class_of, sentences) / self._sizes
        return means

    def features_for_each(self, words: Tensor, *, by_sample: bool) -> Tensor:
        """Return the class features for each sample (b, n_classes, joint_width), computed once.

        Args:
            words: (b, n_words, text_width), the same for every sample.
            by_sample: whether the gradient by `words` is told apart by sample; otherwise all of it goes to the first.
        """
        if by_sample and len(words):
            spread: Tensor = _ForEachSample.apply(words, self)  # type: ignore[no-untyped-call]
            return spread
        return self.features(words[:1]).expand(len(words), -1, -1)

    def pull_back(self, words: Tensor, cotangents: Tensor) -> Tensor:
        """Return the gradients by the words of samples whose gradients by the class features are given.

        Args:
            words: (n_words, text_width).
            cotangents: (b, n_classes, joint_width).

        Returns:
            (b, n_words, text_width).
        """
        if self._kept is not None and torch.equal(self._kept[0], words):
            return self._by_jacobian(self._kept[1], cotangents)
        joint_width = cotangents.shape[-1]
        widest = max(self.n_classes * joint_width, len(self._ends) * max(joint_width, self.text_width))
        jacobian_bytes = 4 * widest * words.numel()
        if len(cotangents) >= self.text_width and jacobian_bytes <= JACOBIAN_BYTES:
            self._kept = (words.clone(), self.jacobian(words))
            return self._by_jacobian(self._kept[1], cotangents)
        return torch.cat([self._gradient(words[None], part)[:, 0] for part in torch.split(cotangents, self._at_once)])

    def jacobian(self, words: Tensor) -> Tensor:
        """Return the class features' derivatives by the words (n_classes, joint_width, n_words, text_width)."""
        chosen = words.expand(len(self._ends), -1, -1).detach().clone().requires_grad_()
        with torch.enable_grad():
            states = self._end_states(self._with_words(chosen[None]), self._ends)
            sums = states.sum(dim=0)  # sentences do not meet: a sum's gradient is each sentence's own
            rows = [torch.autograd.grad(one, chosen, retain_graph=True)[0] for one in sums]
        by_state = torch.stack(rows, dim=1).flatten(2)  # (n_sentences, text_width, n_words * text_width)
        after = torch.func.vmap(torch.func.jacrev(self._finish))(states.detach())
        by_sentence = torch.bmm(after, by_state).div_(self._sizes[self._class_of][:, None])
        summed = by_sentence.new_zeros((self.n_classes, *by_sentence.shape[1:]))
        jacobian: Tensor = summed.index_add(0, self._class_of, by_sentence)
        return jacobian.reshape(*jacobian.shape[:2], *words.shape)

    @property
    def _at_once(self) -> int:
        """Replicas of all sentences that run together."""
        layers = len(self._tower.transformer.resblocks)
        sentence = 4 * _FLOATS_A_TOKEN_AND_LAYER * self.text_width * layers * self._length
        return max(1, WORKING_BYTES // (sentence * len(self._embedded)))

    def _gradient(self, words: Tensor, cotangents: Tensor) -> Tensor:
        """The gradients by replicas of words (n, n_words, text_width), n classes or one for all: (r, n, ...)."""
        replicas = words.expand(len(cotangents), -1, -1, -1).detach().clone().requires_grad_()
        with torch.enable_grad():
            features = self.features(replicas.expand(-1, self.n_classes, -1, -1))
            (gradient,) = torch.autograd.grad(features, replicas, cotangents)
        return gradient

    def _by_jacobian(self, jacobian: Tensor, cotangents: Tensor) -> Tensor:
        rows: Tensor = cotangents.flatten(1) @ jacobian.flatten(2).flatten(0, 1)
        return rows.reshape(-1, *jacobian.shape[2:])

    def _end_states(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """What the blocks leave at the ends (n, text_width) of embedded sentences (n, length, text_width)."""
        tower = self._tower
        states = tokens + tower.positional_embedding[: self._length]
        states = tower.transformer(states, attn_mask=tower.attn_mask[: self._length, : self._length])
        chosen: Tensor = states[torch.arange(len(ends), device=ends.device), ends]
        return chosen

    def _finish(self, states: Tensor) -> Tensor:
        """The normalised features (..., joint_width) of states at the ends (..., text_width)."""
        tower = self._tower
        pooled = tower.ln_final(states)
        projection = tower.text_projection
        if isinstance(projection, nn.Linear):
            pooled = projection(pooled)
        elif projection is not None:
            pooled = pooled @ projection
        return F.normalize(pooled.float(), dim=-1)


class _ForEachSample(torch.autograd.Function):
    """Class features spread over the samples, whose gradient is pulled back for each sample by itself."""

    @staticmethod
    def forward(ctx: Any, words: Tensor, text: PromptedText) -> Tensor:
        ctx.text = text
        ctx.save_for_backward(words[0])
        return text.features(words[:1]).expand(len(words), -1, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangents: Tensor) -> tuple[Tensor, None]:
        (words,) = ctx.saved_tensors
        return ctx.text.pull_back(words, cotangents.float()), None


def _text_tower(backbone: Backbone) -> Any:
    """The text tower's parts under open_clip's names.

    Raises:
        UserError: it reads other than from left to right up to the end of text.
    """
    clip: Any = backbone.model
    tower: Any = getattr(clip, "text", clip)
    pooled = getattr(clip, "text_pool_type", None) or getattr(tower, "pool_type", None)
    if pooled not in ("argmax", "eos") or tower.attn_mask is None or getattr(tower, "cls_emb", None) is not None:
        raise UserError(
            f"the first words of backbone '{backbone.name}' cannot be trained: its text tower does not read from left "
            "to right up to the end of text",
            remedy="choose a method without text prompts, or a backbone such as ViT-B-32, ViT-B-16 or ViT-L-14",
        )
    return tower
