"""Hypothesis without clocks: a busy machine is no reason for a test to fail; and sparse graphs of a few sites."""

import pytest
from hypothesis import HealthCheck, settings

from secure_agg import policy
from secure_agg.graph import GraphParameters

settings.register_profile("no clocks", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clocks")

SPARSE_SITES = 7  # a cohort of this size is sparse under the fixture below


@pytest.fixture
def sparse_from_seven_sites(monkeypatch):
    """Make cohorts of 7 sites and more sparse, with 4 neighbours each: for order and messages, not for security."""
    monkeypatch.setattr(policy, "COMPLETE_GRAPH_LIMIT_SITES", SPARSE_SITES - 1)
    monkeypatch.setattr(policy, "sparse_parameters", lambda n, _c, _dropped: GraphParameters(True, 4, 4, n - 1, 1))
