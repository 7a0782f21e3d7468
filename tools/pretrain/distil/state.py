"""What a training needs to go on after a stop: written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Training:
    """Modules, optimizers and the time spent on them.

    Args:
        modules: by the name under which each is stored.
        optimizers: in a fixed order.
        extra: further tensors to store, not read back.
    """

    modules: dict[str, torch.nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0
    spent: float = 0.0

    def resume(self, path: Path) -> None:
        """Go on from a file where there is one."""
        if not path.exists():
            return
        saved = torch.load(path, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(saved[name])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.spent = saved["step"], saved["spent"]

    def save(self, path: Path) -> None:
        """Write beside the file, then put it in its place."""
        state: dict[str, Any] = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"optimizers": [o.state_dict() for o in self.optimizers], "step": self.step, "spent": self.spent}
        part = path.with_suffix(".part")
        torch.save(state | self.extra, part)
        part.replace(path)

    def descend(self, loss: torch.Tensor, rate: float) -> None:
        """One step of every optimizer at a learning rate."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss.backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # for Muon's products
            for optimizer in self.optimizers:
                optimizer.step()
        self.step += 1
