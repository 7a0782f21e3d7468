"""One honest round on a sparse graph, for all tests that need one."""

import pytest

from tests.hostile.rounds import SPARSE_SITES, Consortium, StagedRound, remembered_signatures


@pytest.fixture(scope="session")
def sparse_round():
    with remembered_signatures():
        staged = StagedRound(Consortium(SPARSE_SITES))
        staged.run()
    return staged
