"""What a study measured, one value a row, in one Parquet file.

Every row names its cell in full, so that a row means the same in whatever table it is put. What holds for the whole
study is kept once, in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedmvp.errors import UserError
from fedmvp.extras import optional_module
from fedmvp.study.storage import write_atomic

NON_PRIVATE = "non-private"
"""The mode of a cell without noise; sums are secure as in the others."""

SCORE = "score"
"""The metric that methods are compared by: target accuracy, harmonic mean, or mean average precision."""

_FACTS_KEY = b"fedmvp.study"


@dataclass(frozen=True, order=True)
class Cell:
    """One run of one method.

    Attributes:
        method: name of the study's method entry.
        mode: "non-private", "record-local", "record-distributed" or "silo-distributed".
        epsilon: what the noise was chosen for; None without privacy.
        size: the method entry's module size, in words; "" where it has but one.
        sites: how many sites took part.
        seed: of the partition, the held-out images, batches and noise; the module's public start is the same.
    """

    method: str
    mode: str
    epsilon: float | None
    size: str
    sites: int
    seed: int

    @property
    def name(self) -> str:
        """A file name that tells the cell from all others of its study."""
        spent = "" if self.epsilon is None else f"-eps{self.epsilon!r}".removesuffix(".0")
        size = f"-{self.size.replace(' ', '')}" if self.size else ""
        return f"{self.method}{size}-{self.mode}{spent}-{self.sites}sites-seed{self.seed}"


@dataclass(frozen=True)
class Measurement:
    """One value of one cell.

    Attributes:
        metric: "score", "accuracy", "average-precision", "parameters", "epsilon" (spent), "bytes-up", "bytes-down",
            "seconds", "sum-error" (largest difference between the decoded secure sum and the plain one).
        value: shares lie in [0, 1]; bytes are those of all rounds.
        group: of what: a target, "local", "base", "new" (after a data set's name: of that), a site's name; "" for all.
        round: after which round, 0 being the start; None for the end of the run.
        count: images behind the value, where it is a share of images.
    """

    metric: str
    value: float
    group: str = ""
    round: int | None = None
    count: int | None = None


Row = tuple[Cell, Measurement]
_COLUMNS = (*(field.name for field in fields(Cell)), *(field.name for field in fields(Measurement)))


@dataclass(frozen=True)
class Results:
    """A results file.

    Attributes:
        facts: what holds for the whole study: `name`, `title`, `score` (what the score is, in words), `setting`,
            `sources`, `targets`, `classes`, `delta`, `unit`, `neighboring_relation`, `accountant`, `tower` (with `name`
            and the `data` that it saw), `data` (`name`, `images`), `sites` (each with `name`, `images`, `classes`),
            `settings_from` (where hyper-parameters come from) and `notes` (sentences that every report must show).
        rows: cells and their values.
    """

    facts: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells in the order of their first row."""
        return tuple(dict.fromkeys(cell for cell, _ in self.rows))


def write_results(path: Path, facts: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Write a results file; it is there whole or not at all.

    Raises:
        UserError: pyarrow is not installed, or the file cannot be written.
    """
    pa, parquet = _pyarrow()
    listed = [{**asdict(cell), **asdict(measured)} for cell, measured in rows]
    columns = {
        "method": pa.string(),
        "mode": pa.string(),
        "epsilon": pa.float64(),
        "size": pa.string(),
        "sites": pa.int32(),
        "seed": pa.int64(),
        "metric": pa.string(),
        "value": pa.float64(),
        "group": pa.string(),
        "round": pa.int32(),
        "count": pa.int64(),
    }
    schema = pa.schema(list(columns.items()), metadata={_FACTS_KEY: json.dumps(dict(facts), sort_keys=True)})
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(listed, schema=schema), sink)
    write_atomic(path, sink.getvalue().to_pybytes())


def read_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        UserError: missing, or no results of a study.
    """
    pa, parquet = _pyarrow()
    if not path.is_file():
        raise UserError(f"{path} does not exist", remedy="run the study first: fedmvp-experiment run STUDY.toml")
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}", remedy="run the study again") from error
    facts = (table.schema.metadata or {}).get(_FACTS_KEY)
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if facts is None or missing:
        raise UserError(
            f"{path} holds no results of a study" + (f": it lacks {', '.join(missing)}" if missing else ""),
            remedy="name the results.parquet that fedmvp-experiment run wrote",
        )
    cell_names = {field.name for field in fields(Cell)}
    rows = tuple(
        (
            Cell(**{name: value for name, value in row.items() if name in cell_names}),
            Measurement(**{name: value for name, value in row.items() if name in _COLUMNS and name not in cell_names}),
        )
        for row in table.to_pylist()
    )
    return Results(json.loads(facts), rows)


def _pyarrow() -> tuple[Any, Any]:
    purpose = "a results file"
    pa = optional_module("pyarrow", extra="experiments", purpose=purpose)
    return pa, optional_module("pyarrow.parquet", extra="experiments", purpose=purpose)
