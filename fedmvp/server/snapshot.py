"""The state after the last published round, on disk: what a restarted coordinator goes on from.

One file, replaced as a whole, so that it holds one round or the next and never a mixture.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from fedmvp.errors import ExitCode, UserError
from fedmvp.rpc.vectors import NamedTensors, model_hash
from fedmvp.study.storage import write_atomic

FILE_NAME = "snapshot.safetensors"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The model after a round.

    Args:
        run_id: the run.
        policy_hash: of the policy it was trained under (32 bytes).
        round: last round whose sum is in it; 0 before the first.
        rounds_completed: how many sums are in it.
        tensors: the whole state in its public order.
        stamp: the mode of privacy it was trained in, so that a copy of the file alone tells.
    """

    run_id: str
    policy_hash: bytes
    round: int
    rounds_completed: int
    tensors: NamedTensors
    stamp: str

    @property
    def parameters(self) -> NDArray[np.float32]:
        """The trained parameters (d,)."""
        return dict(self.tensors)["parameters"]

    def write(self, state_dir: Path) -> None:
        """Replace the snapshot in `state_dir`; returns once the disk has it."""
        metadata = {
            "run_id": self.run_id,
            "stamp": self.stamp,
            "policy_hash": self.policy_hash.hex(),
            "round": str(self.round),
            "rounds_completed": str(self.rounds_completed),
            "order": json.dumps([name for name, _ in self.tensors]),
            "model_hash": model_hash(self.tensors).hex(),
        }
        content = save({name: np.ascontiguousarray(array) for name, array in self.tensors}, metadata)
        write_atomic(state_dir / FILE_NAME, content)


def read_snapshot(state_dir: Path) -> Snapshot | None:
    """The snapshot in `state_dir`, or None when there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = state_dir / FILE_NAME
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata: dict[str, Any] = file.metadata() or {}
        tensors = load_file(path)
        ordered = [(name, tensors[name]) for name in json.loads(metadata["order"])]
        intact = model_hash(ordered).hex() == metadata["model_hash"]
        snapshot = Snapshot(
            run_id=metadata["run_id"],
            policy_hash=bytes.fromhex(metadata["policy_hash"]),
            round=int(metadata["round"]),
            rounds_completed=int(metadata["rounds_completed"]),
            tensors=ordered,
            stamp=metadata["stamp"],
        )
    except (safetensors.SafetensorError, KeyError, ValueError, OSError):
        intact = False
    if not intact:
        raise UserError(
            f"{path} is damaged", remedy="restore the server's state folder from a backup", exit_code=ExitCode.CONFIG
        )
    return snapshot
