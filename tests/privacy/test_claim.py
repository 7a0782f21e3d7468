"""The claim card says what the ledger says, in every mode, and its sentences follow from its numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from privacy import Ledger, Mode, PrivacyRefused, accountant
from privacy.claim import Claim, group_privacy, make_claim, make_run_claim, parse_claim
from privacy.mechanism import NoiseShares, PrivacyParameters
from tests.privacy.conftest import PARAMS, POLICY, UNSAFE

SHARED = replace(
    PARAMS,
    mode=Mode.RECORD_DISTRIBUTED,
    steps_per_round=1,
    noise_shares=NoiseShares(dimension=1, shares=16, grid=2.0**20, clamp=2**24),
)
SILO = replace(SHARED, mode=Mode.SILO_DISTRIBUTED, unit="site")


def run_claim(params: PrivacyParameters = PARAMS, released: int = 2) -> Claim:
    return make_run_claim(params, released=released, rounds=4, epsilon_max=8.0)


def test_a_claim_states_what_the_ledger_charged_and_what_the_study_will(ledger: Ledger) -> None:
    for number in (1, 2):
        ledger.reserve("run", number, PARAMS, POLICY).consume()
    claim = make_claim(ledger, PARAMS, run_id="run", rounds=4)
    assert claim.epsilon_spent == ledger.spent().epsilon > 0
    assert claim.epsilon_planned == accountant.composition([PARAMS.mechanism] * 4, 1e-5)
    assert (claim.epsilon_max, claim.delta, claim.unit, claim.neighboring_relation) == (
        8.0, 1e-5, "record", "add-or-remove-one",
    )  # fmt: skip
    assert claim.accountant == accountant.ACCOUNTANT
    assert (claim.ledger_head, claim.rounds_charged) == (ledger.head.hex(), 2)
    assert claim.covered == "everything sent in all runs on this dataset"


def test_rounds_of_another_run_are_in_the_claim_and_are_not_mistaken_for_this_one(ledger: Ledger) -> None:
    ledger.reserve("earlier", 1, PARAMS, POLICY).consume()
    claim = make_claim(ledger, PARAMS, run_id="run", rounds=4)
    assert claim.rounds_charged == 1
    assert claim.epsilon_planned == accountant.composition([PARAMS.mechanism] * 5, 1e-5)


def test_a_dataset_with_differing_mechanisms_is_claimed_by_the_filter(ledger: Ledger) -> None:
    ledger.reserve("earlier", 1, replace(PARAMS, noise_multiplier=3.0), POLICY).consume()
    claim = make_claim(ledger, PARAMS, run_id="run", rounds=2)
    assert claim.accountant.startswith(accountant.ADAPTIVE_ACCOUNTANT)
    ledger.reserve("run", 1, PARAMS, POLICY).consume()
    ledger.reserve("run", 2, PARAMS, POLICY).consume()
    assert claim.epsilon_planned == ledger.spent().epsilon


def test_making_a_claim_writes_nothing(ledger: Ledger) -> None:
    head = ledger.head
    make_claim(ledger, PARAMS, run_id="run", rounds=4)
    assert (ledger.head, len(ledger.entries())) == (head, 1)
    with Ledger.open(ledger.path, read_only=True) as beside:
        assert make_claim(beside, PARAMS, run_id="run", rounds=4).epsilon_spent == 0


def test_a_study_that_does_not_fit_the_ledger_has_no_claim(ledger: Ledger) -> None:
    for other in (replace(PARAMS, unit="patient"), replace(PARAMS, delta=1e-6), UNSAFE):
        with pytest.raises(PrivacyRefused):
            make_claim(ledger, other, run_id="run", rounds=1)


def test_the_local_mode_trusts_nobody() -> None:
    claim = run_claim()
    assert claim.trust.startswith("nobody")
    assert claim.without_secure_sum == "the same guarantee"


@pytest.mark.parametrize("params", [SHARED, SILO], ids=["record", "silo"])
def test_the_distributed_modes_name_the_secure_sum_the_survivors_and_the_share_that_remains(
    params: PrivacyParameters,
) -> None:
    claim = run_claim(params)
    assert "computational" in claim.trust
    assert "secure sum" in claim.trust
    assert "at least 16 honest" in claim.trust
    assert "1.5 / sqrt(16) = 0.375" in claim.without_secure_sum
    assert "if the secure sum holds with 16 honest sites" in claim.line
    assert claim.accountant == accountant.DISTRIBUTED_ACCOUNTANT


def test_what_has_no_privacy_promises_nothing_anywhere_on_its_card(unsafe_ledger: Ledger) -> None:
    unsafe_ledger.reserve("run", 1, UNSAFE, POLICY).consume()
    for claim in (make_claim(unsafe_ledger, UNSAFE, run_id="run", rounds=2), run_claim(UNSAFE), run_claim(UNSAFE, 0)):
        assert claim.stamp == "UNSAFE-no-dp"
        assert claim.epsilon_planned == math.inf
        assert claim.trust.startswith("none")
        assert claim.covered == "nothing"
        assert claim.group == ""
        assert claim.line.startswith("claim: none, UNSAFE-no-dp")
        assert json.loads(claim.to_text())["stamp"] == "UNSAFE-no-dp"


def test_one_release_without_privacy_taints_every_later_claim_on_the_dataset(unsafe_ledger: Ledger) -> None:
    before = make_claim(unsafe_ledger, PARAMS, run_id="run", rounds=2)
    assert before.stamp == "record-local"
    unsafe_ledger.reserve("earlier", 1, UNSAFE, POLICY).consume()
    after = make_claim(unsafe_ledger, PARAMS, run_id="run", rounds=2)
    assert (after.mode, after.stamp, after.epsilon_spent) == ("record-local", "UNSAFE-no-dp", math.inf)


def test_a_card_for_records_works_out_what_a_patient_with_several_images_has() -> None:
    claim = run_claim()
    epsilon, delta = group_privacy(claim.epsilon_planned, 1e-5, 3)
    assert "k*epsilon and k*e^((k-1)*epsilon)*delta" in claim.group
    assert f"k = 3: epsilon {epsilon:.3g}, delta {delta:.2g}" in claim.group
    assert dict(claim.rows())["group"] == claim.group
    assert run_claim(replace(PARAMS, unit="patient")).group == ""
    assert run_claim(SILO).group == ""


def test_a_group_has_no_more_than_the_limit_lets_out() -> None:
    claim = make_run_claim(PARAMS, released=0, rounds=4, epsilon_max=0.5)
    assert claim.epsilon_planned > 0.5
    assert "k = 2: epsilon 1, " in claim.group
    assert dict(claim.rows())["epsilon limit"].startswith("0.5:")


@pytest.mark.parametrize("k", [1, 2, 5])
def test_group_privacy_is_the_k_fold_application_of_the_definition(k: int) -> None:
    epsilon, delta = group_privacy(0.5, 1e-5, k)
    composed = math.fsum(math.exp(0.5 * step) for step in range(k)) * 1e-5  # P0 <= e^eps P1 + delta, k times
    assert epsilon == 0.5 * k
    assert composed <= delta * (1 + 1e-12)
    assert delta == pytest.approx(k * math.exp(0.5 * (k - 1)) * 1e-5, rel=1e-12)


def test_group_privacy_ends_at_a_delta_that_promises_nothing() -> None:
    assert group_privacy(400.0, 1e-5, 3) == (1200.0, 1.0)
    assert group_privacy(math.inf, 1e-5, 2) == (math.inf, 1.0)
    with pytest.raises(ValueError, match="at least 1"):
        group_privacy(1.0, 1e-5, 0)


@pytest.mark.parametrize("params", [PARAMS, replace(PARAMS, unit="patient"), SHARED, SILO, UNSAFE], ids=str)
def test_a_claim_survives_being_written_and_read(params: PrivacyParameters) -> None:
    claim = run_claim(params)
    assert parse_claim(claim.to_text()) == claim


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stamp": "record-distributed"}, "stamped"),
        ({"mode": "UNSAFE-no-dp", "unit": "record"}, "promises no epsilon"),
        ({"epsilon_spent": -1.0}, "do not fit"),
        ({"epsilon_spent": 99.0}, "do not fit"),
        ({"epsilon_spent": "none"}, "epsilon_spent is missing or no float"),
        ({"epsilon_max": float("nan")}, "epsilon_max is missing or no float"),
        ({"steps_per_round": True}, "steps_per_round is missing or no int"),
        ({"rounds_charged": -1}, "negative"),
        ({"delta": 0.5}, "delta"),
        ({"unit": "site"}, "does not go with mode"),
        ({"shares": 3}, "shares of noise"),
        ({"neighboring_relation": "replace-one"}, "unknown relation"),
        ({"scope": "world"}, "unknown relation"),
        ({"format": "claim-v0"}, "not a privacy-claim"),
        ({"mode": None}, "mode is missing"),
    ],
    ids=str,
)
def test_a_claim_that_contradicts_itself_is_not_read(change: dict[str, object], message: str) -> None:
    document = {**run_claim().as_json(), **change}
    with pytest.raises(ValueError, match=message):
        parse_claim(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "hello", "{}"])
def test_what_is_no_claim_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_claim(text)


def test_a_claim_of_no_rounds_or_of_negative_ones_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        make_claim(ledger, PARAMS, run_id="run", rounds=0)
    with pytest.raises(ValueError, match="released must be at least 0"):
        run_claim(released=-1)


def test_every_card_names_what_it_does_not_cover() -> None:
    for params in (PARAMS, SHARED, SILO):
        gaps = " ".join(text for name, text in run_claim(params).rows() if name == "not covered")
        for word in ("operator", "several sites", "timing", "hyper-parameters"):
            assert word in gaps
