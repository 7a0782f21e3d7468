"""The gradients of the records of one pass by one parameter, as far as clipping needs them: norms, and a weighted sum.

Two forms. :class:`Rows` holds them as they are. :class:`Outer` holds what a linear layer leaves, an activation and an
output gradient a token, whose products they are sums of; norms and sum come from these without a gradient a record in
memory (book-keeping, Bu et al. 2023, arXiv 2210.00038).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 2**22}
"""Most memory of what is formed on the way, by kind of device: on a processor little enough for its cache."""

CHUNK_BYTES_ELSEWHERE = 2**27
"""128 MiB: enough for full speed, little beside the activations of a tower."""

KEPT_BYTES = 2**25
"""Gradients of one parameter that are formed for their norms are kept for the sum up to here, 32 MiB."""

_READING = 16
"""What a number of a gradient costs to write and to read twice, in multiplications."""

LARGEST_NORM = 1e30
"""A gradient of this norm or more counts as one that is not finite; so does one with such a token in it."""

_CANCELLATION = 2.0**-10
"""A gradient whose terms nearly cancel enters a float32 sum by their rounding errors, which its norm does not bound. So
its norm counts as at least this part of the sum of its terms' norms."""

_ROUNDING = 16.0
"""Norms are made larger by so many units in the last place of what was added up, so that they are never short of it."""

_BLOCK = 256
"""Squares added up in float32: 32 in each lane of a vector at most, which is exact to a millionth."""

_EASY_NORMS = (1e-15, 1e15)
"""Between these no square that matters overflows or vanishes in float32."""

_FEW_NUMBERS = 2**16
"""So many are read in float64 sooner than in blocks."""

_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
"""Compute capabilities of CUDA devices with half as many units for float64 as for float32; others have a 64th."""


class SampleGradients(Protocol):
    """What clipping asks of the gradients of B records by one parameter."""

    def __len__(self) -> int:
        """B."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one gradient, which is the parameter's."""

    def norms(self) -> Tensor:
        """Euclidean norms (B,), in float64 where the device has it; not finite for a gradient that is not."""

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """The sum over the records, each times its weight (B,); of the parameter's shape."""

    def take(self, records: Tensor) -> SampleGradients:
        """Those of some records, given by their positions (b,)."""

    def materialise(self) -> Tensor:
        """The gradients themselves (B, *shape)."""


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it: a float32 sum of a million squares is short by a hundred-thousandth."""
    return torch.float32 if device.type == "mps" else torch.float64


def product_dtype(device: torch.device) -> torch.dtype:
    """Precision of the products that norms are computed from: float64 where the device is quick at it."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) not in _FAST_FLOAT64:
        return torch.float32
    return exact_dtype(device)


def joint_norms(gradients: Sequence[SampleGradients]) -> Tensor:
    """Each record's norm over all parameters together (B,)."""
    norms: Tensor = torch.linalg.vector_norm(torch.stack([gradient.norms() for gradient in gradients]), dim=0)
    return norms


def all_true(conditions: Tensor) -> bool:
    """Whether all of them hold; so on the meta device, where shapes are all there is: the usual case."""
    return conditions.is_meta or bool(conditions.all())


def as_rows(gradient: Tensor) -> Tensor:
    """(B, *shape) as (B, size); also for a scalar parameter and an empty batch."""
    return gradient.reshape(gradient.shape[0], math.prod(gradient.shape[1:]))


class Rows:
    """Gradients as they are.

    Args:
        values: (B, *shape).
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`SampleGradients`."""
        return tuple(self.values.shape[1:])

    def norms(self) -> Tensor:
        """See :class:`SampleGradients`."""
        return _token_norms(as_rows(self.values))

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """See :class:`SampleGradients`; added up in float64 where the device has it."""
        weights = weights.to(self.values).view(-1, *(1,) * (self.values.dim() - 1))
        return (self.values * weights).sum(dim=0, dtype=exact_dtype(self.values.device))

    def materialise(self) -> Tensor:
        """See :class:`SampleGradients`."""
        return self.values

    def take(self, records: Tensor) -> Rows:
        """See :class:`SampleGradients`."""
        return Rows(self.values.index_select(0, records.to(self.values.device)))


class Outer:
    """Gradients by a matrix that maps activations to outputs, token by token: sum over tokens of g times a transposed.

    Args:
        activations: (B, T, d), or (T, d) where all records have the same.
        gradients: of the summed loss by the outputs (B, T, p).
    """

    def __init__(self, activations: Tensor, gradients: Tensor) -> None:
        # Activations that were expanded over the batch are one copy and many names for it.
        copies = activations.dim() == 3 and activations.stride(0) == 0 and activations.shape[0] > 0
        self.activations = activations[0] if copies else activations
        self.gradients = gradients
        self._rows: Tensor | None = None

    def __len__(self) -> int:
        return self.gradients.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """See :class:`SampleGradients`."""
        return self.gradients.shape[2], self.activations.shape[-1]

    @property
    def is_shared(self) -> bool:
        """Whether all records have the same activations."""
        return self.activations.dim() == 2

    def norms(self) -> Tensor:
        """See :class:`SampleGradients`; never short of the norm by rounding.

        By products of pairs of tokens, or from the gradients themselves where that is less work. Gradients that are
        small are kept, and what was measured is what is added up.
        """
        tokens, (outputs, inputs) = self.gradients.shape[1], self.shape
        size = outputs * inputs
        if tokens == 1 and not self.is_shared:
            return _norms_of_pairs(self.activations, self.gradients)
        # In multiplications a record: those of gradients and of pairs, beside those of the sum that follows.
        forming, reading = tokens * size, _READING * size
        pairing = tokens**2 * outputs if self.is_shared else 2 * tokens * (tokens + 2) * (outputs + inputs)
        fits = len(self) * size * self.gradients.element_size() <= KEPT_BYTES
        if fits and pairing > reading + forming * self.is_shared:
            self._rows = as_rows(self.materialise())
            return _norms_of_rows(self._rows)
        if pairing > reading + forming:
            return self._in_chunks(_norms_by_rows, self.gradients.dtype, size)
        if self.is_shared:
            by_shared = functools.partial(_norms_by_shared_pairs, *_scaled_products(self.activations))
            return self._in_chunks(by_shared, self.gradients.dtype, 4 * tokens * outputs)
        dtype = torch.promote_types(product_dtype(self.gradients.device), self.gradients.dtype)
        by_pairs = _norms_by_pairs if dtype is torch.float64 else _norms_by_balanced_pairs
        return self._in_chunks(by_pairs, dtype, 2 * tokens**2 + tokens * (outputs + inputs))

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """See :class:`SampleGradients`; one product, in the precision of the parameter."""
        activations, gradients = self.activations, self.gradients
        weights = weights.to(gradients)
        if self._rows is not None:
            return (weights @ self._rows).view(self.shape)
        if self.is_shared:
            return (weights @ as_rows(gradients)).view(gradients.shape[1:]).T @ activations
        fewer = min(self.shape)
        total = gradients.new_zeros(self.shape)
        for part in _chunks(gradients, gradients.shape[1] * fewer * gradients.element_size() // 8):
            left, right, each = gradients[part], activations[part], weights[part].view(-1, 1, 1)
            left, right = (left * each, right) if fewer == left.shape[2] else (left, right * each)
            total.addmm_(left.reshape(-1, left.shape[2]).T, right.reshape(-1, right.shape[2]))
        return total

    def take(self, records: Tensor) -> Outer:
        """See :class:`SampleGradients`."""
        records = records.to(self.gradients.device)
        activations = self.activations if self.is_shared else self.activations.index_select(0, records)
        taken = Outer(activations, self.gradients.index_select(0, records))
        taken._rows = None if self._rows is None else self._rows.index_select(0, records)
        return taken

    def materialise(self) -> Tensor:
        """See :class:`SampleGradients`."""
        return self.gradients.mT @ self.activations

    def _in_chunks(self, norms: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, each: int) -> Tensor:
        """Norms in parts that form so many numbers a record."""
        found = []
        for part in _chunks(self.gradients, each * dtype.itemsize):
            activations = self.activations if self.is_shared else self.activations[part]
            found.append(norms(activations.to(dtype), self.gradients[part].to(dtype)))
        exact = exact_dtype(self.gradients.device)
        return torch.cat(found).to(exact) if found else self.gradients.new_zeros(0, dtype=exact)


def combine(parts: Sequence[SampleGradients | Tensor]) -> SampleGradients:
    """The gradients of a parameter that was used several times: what each use left, added up record by record."""
    if len(parts) == 1:
        return Rows(parts[0]) if isinstance(parts[0], Tensor) else parts[0]
    outer = [part for part in parts if isinstance(part, Outer)]
    if len(outer) == len(parts):
        size = len(outer[0])
        each = [form.activations.expand(size, -1, -1) if form.is_shared else form.activations for form in outer]
        return Outer(torch.cat(each, dim=1), torch.cat([form.gradients for form in outer], dim=1))
    each = [part if isinstance(part, Tensor) else part.materialise() for part in parts]
    return Rows(sum(each[1:], start=each[0]))


def _norms_by_pairs(activations: Tensor, gradients: Tensor) -> Tensor:
    """The square of a sum of outer products: over pairs of tokens, the sum of the products of both inner products."""
    left, right = activations @ activations.mT, gradients @ gradients.mT  # (B, T, T)
    lengths = left.diagonal(dim1=-2, dim2=-1).sqrt(), right.diagonal(dim1=-2, dim2=-1).sqrt()
    squares = left.mul_(right).sum(dim=(-2, -1), dtype=exact_dtype(right.device))
    terms = _terms(*lengths)
    return _at_least((squares + _units(right.dtype) * terms.square()).clamp(min=0).sqrt(), terms, *lengths)


def _norms_by_balanced_pairs(activations: Tensor, gradients: Tensor) -> Tensor:
    """The same in float32, with both factors of a term equally long and the longest of them of length 1.

    So a product that vanishes belongs to a term that does not matter.
    """
    lengths = _token_norms(activations), _token_norms(gradients)  # (B, T)
    terms = (lengths[0] * lengths[1]).sqrt()
    longest = terms.amax(dim=1, keepdim=True)
    scales = [torch.where(terms > 0, terms / length / longest, 0.0)[..., None] for length in lengths]
    norms = _norms_by_pairs(
        *(part * scale.to(part) for part, scale in zip((activations, gradients), scales, strict=True))
    )
    return _at_least(
        torch.where(longest[:, 0] > 0, norms * longest[:, 0].square(), longest[:, 0]), _terms(*lengths), *lengths
    )


def _scaled_products(activations: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products of tokens (T, T), none larger than 1, formed in float64 where the device has it, and the scale."""
    exact = activations.to(exact_dtype(activations.device))
    longest = _token_norms(exact).amax()
    exact = torch.where(longest > 0, exact / longest, exact)
    return exact @ exact.T, longest


def _norms_by_shared_pairs(left: Tensor, scale: Tensor, _: Tensor, gradients: Tensor) -> Tensor:
    """The same where every record has the same activations, given by :func:`_scaled_products`."""
    lengths = left.diagonal().sqrt(), _token_norms(gradients)
    products = left.to(gradients.dtype) @ gradients
    squares = products.to(left.dtype).mul_(gradients).sum(dim=(-2, -1))
    absolute = ((lengths[1] @ left.abs()) * lengths[1]).sum(dim=-1)
    squares = (squares + _units(gradients.dtype) * absolute).clamp(min=0)
    return scale * _at_least(squares.sqrt(), _terms(*lengths), lengths[0] * scale, lengths[1])


def _norms_by_rows(activations: Tensor, gradients: Tensor) -> Tensor:
    lengths = _token_norms(activations), _token_norms(gradients)
    terms = _terms(*lengths)
    norms = _norms_of_rows(as_rows(gradients.mT @ activations))
    return _at_least(norms + _units(gradients.dtype) * terms, terms, *lengths)


def _norms_of_pairs(activations: Tensor, gradients: Tensor) -> Tensor:
    """Of one token a record (B, 1, d), (B, 1, p)."""
    lengths = _token_norms(activations), _token_norms(gradients)
    return _at_least(_terms(*lengths), _terms(*lengths), *lengths)


def _norms_of_rows(rows: Tensor) -> Tensor:
    """Norms of (B, n): of many numbers, short blocks are added up as they are, and the blocks in float64."""
    size, count = rows.shape[0], rows.shape[1] // _BLOCK
    if rows.numel() <= _FEW_NUMBERS:
        return _token_norms(rows)
    exact = exact_dtype(rows.device)
    blocks = torch.linalg.vector_norm(rows[:, : count * _BLOCK].reshape(size, count, _BLOCK), dim=2).to(exact)
    rest = torch.linalg.vector_norm(rows[:, count * _BLOCK :], dim=1, dtype=exact)
    norms = torch.linalg.vector_norm(torch.cat([blocks, rest[:, None]], dim=1), dim=1)
    easy = (norms > _EASY_NORMS[0]) & (norms < _EASY_NORMS[1])
    return norms if all_true(easy) else _token_norms(rows)


def _token_norms(tokens: Tensor) -> Tensor:
    """Norms along the last dimension, however long or short."""
    exact = exact_dtype(tokens.device)
    norms: Tensor
    if exact is torch.float64:
        norms = torch.linalg.vector_norm(tokens, dim=-1, dtype=exact)
        return norms
    largest = tokens.abs().amax(dim=-1, keepdim=True)
    norms = torch.linalg.vector_norm(tokens / torch.where(largest > 0, largest, 1.0), dim=-1)
    return largest[..., 0] * norms


def _terms(activations: Tensor, gradients: Tensor) -> Tensor:
    """The sum of the norms of the terms (B,), from the norms of tokens (B, T); the first may be (T,)."""
    return (activations * gradients).sum(dim=-1)


def _at_least(norms: Tensor, terms: Tensor, activations: Tensor, gradients: Tensor) -> Tensor:
    """Norms (B,) as :data:`_CANCELLATION` and :data:`LARGEST_NORM` have them."""
    absurd = (torch.maximum(activations, gradients) >= LARGEST_NORM).any(dim=-1)
    return torch.where(absurd, torch.inf, torch.maximum(norms, _CANCELLATION * terms))


def _units(dtype: torch.dtype) -> float:
    return _ROUNDING * torch.finfo(dtype).eps


def _chunks(records: Tensor, each: int) -> Iterator[slice]:
    """Slices of so many records that what is formed of them, ``each`` bytes a record, stays small."""
    most = CHUNK_BYTES.get(records.device.type, CHUNK_BYTES_ELSEWHERE)
    size = max(1, most // max(1, each))
    return (slice(start, start + size) for start in range(0, len(records), size))
