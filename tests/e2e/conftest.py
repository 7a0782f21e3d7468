"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.federation import Federation, make_federation


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Federation]]:
    """Makes federations; every process they started is gone afterwards."""
    made: list[Federation] = []

    def make(**options: Any) -> Federation:
        made.append(make_federation(tmp_path_factory.mktemp("federation"), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
