"""Whether this process is one of several that compute for one site, as torchrun starts them.

No torch here: the commands ask before they load it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fedmvp.errors import ExitCode, UserError

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_REMEDY = "start all of them with: torchrun --standalone --nproc-per-node N -m fedmvp.cli.client run --config ..."


@dataclass(frozen=True)
class Launch:
    """This process's place among the site's processes.

    Args:
        rank: from 0; 0 leads.
        size: how many there are, at least 2.
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this is the one process that talks to the server and holds keys and ledger."""
        return self.rank == 0


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """Return this process's place, None where it is the site's only one.

    Args:
        environment: where torchrun's variables are looked up; the process environment by default.

    Raises:
        UserError: some of the variables are missing or no numbers, or the processes are on several machines.
    """
    given = os.environ if environment is None else environment
    if given.get("WORLD_SIZE", "1") == "1":
        return None
    values = [given.get(name, "") for name in _VARIABLES]
    if not all(value.isascii() and value.isdecimal() for value in values):
        stated = ", ".join(f"{name}={value!r}" for name, value in zip(_VARIABLES, values, strict=True))
        raise UserError(
            f"this is one of several processes, but not started by torchrun: {stated}",
            remedy=f"{_REMEDY}; for one process: unset WORLD_SIZE",
            exit_code=ExitCode.USAGE,
        )
    rank, local_rank, size, local_size = map(int, values)
    if (rank, size) != (local_rank, local_size):
        raise UserError(
            f"the {size} processes of this site are on several machines ({local_size} on this one)",
            remedy=f"between processes travel sums without noise, unencrypted: use one machine, and {_REMEDY}",
            exit_code=ExitCode.USAGE,
        )
    return Launch(rank, size)
