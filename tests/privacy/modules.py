"""Small modules of the kinds that are trained privately, and plain per-sample gradients to compare with."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privacy.dpsgd import DpSgdEngine
from privacy.optimizer import NoisyOptimizer
from privacy.per_sample import Batch, LossPerSample

WIDTH = 6


class Holder(nn.Module):
    """A parameter of its own, spread over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens.unsqueeze(0).expand(len(x), -1, -1)


class LoraByLayers(nn.Module):
    """A frozen linear map with a low-rank pair of linear layers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class LoraByParameters(nn.Module):
    """The same with two bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, WIDTH)), nn.Parameter(torch.randn(WIDTH, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Attention(nn.Module):
    """Cross-attention made of four linear layers, with prompt tokens appended to the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Holder()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, image: Tensor, attributes: Tensor) -> Tensor:
        keys = self.norm(torch.cat([attributes, self.tokens(image)], dim=1))
        return self.out(F.scaled_dot_product_attention(self.query(image), self.key(keys), self.value(keys)))


class Shared(nn.Module):
    """One linear layer used twice in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Whole(nn.Module):
    """Several inputs, every kind of trained leaf, and a frozen torch attention and batch norm on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.lora, self.bare = LoraByLayers(), LoraByParameters()
        self.frozen = nn.MultiheadAttention(WIDTH, 2, dropout=0.5, batch_first=True).requires_grad_(False)
        self.statistics = nn.BatchNorm1d(WIDTH).requires_grad_(False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, image: Tensor, attributes: Tensor) -> Tensor:
        x = self.bare(self.lora(self.attention(image, attributes)))
        x = x + self.frozen(x, x, x, need_weights=False)[0]
        return self.head(self.statistics(x.mean(dim=1)))


class OneInput(nn.Module):
    """Any map of tokens followed by a mean and a linear head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, image: Tensor, attributes: Tensor) -> Tensor:
        return self.head(self.body(image).mean(dim=1) + attributes.mean(dim=1))


MODULES = {
    "linear": lambda: OneInput(nn.Linear(WIDTH, WIDTH)),
    "layer norm": lambda: OneInput(nn.LayerNorm(WIDTH)),
    "parameter holder": lambda: OneInput(Holder()),
    "lora of layers": lambda: OneInput(LoraByLayers()),
    "lora of parameters": lambda: OneInput(LoraByParameters()),
    "one layer used twice": lambda: OneInput(Shared()),
    "layers that keep books": lambda: OneInput(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), Shared())),
    "everything": Whole,
}


def make_batch(size: int, seed: int = 0) -> Batch:
    """Image tokens (B, 4, WIDTH), attributes (B, 5, WIDTH), labels (B,)."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(size, 4, WIDTH, generator=generator)
    attributes = torch.randn(size, 5, WIDTH, generator=generator)
    return image, attributes, torch.randint(0, 3, (size,), generator=generator)


def cross_entropy(module: nn.Module, batch: Batch) -> Tensor:
    """One loss per record."""
    return F.cross_entropy(module(batch[0], batch[1]), batch[2], reduction="none")


def gradients_one_by_one(module: nn.Module, loss: LossPerSample, batch: Batch) -> Tensor:
    """(B, d): a plain backward pass for each record alone, no hook anywhere."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rows = []
    for record in range(len(batch[0])):
        single = loss(module, tuple(tensor[record : record + 1] for tensor in batch))
        rows.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(single.sum(), trained)]))
    return torch.stack(rows) if rows else torch.zeros(0, sum(p.numel() for p in trained))


def silent(size: int, deviation: float) -> np.ndarray:
    """No noise, to see the rest."""
    return np.zeros(size)


class SilentEngine(DpSgdEngine):
    """An engine without noise: exists in tests alone."""

    def _make_noisy(self, optimizer: torch.optim.Optimizer) -> NoisyOptimizer:
        return NoisyOptimizer(optimizer, self._params, silent)
