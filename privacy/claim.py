"""The claim card: what is promised to whom, by which trust, with which gaps; in the layers of NIST SP 800-226.

A claim is a frozen value made from a ledger, or from a study's parameters alone where the ledgers are elsewhere. Its
numbers are stored; every sentence follows from them, so that a card cannot promise in words what it does not in
numbers. It is not signed: the ledger and the signed study are what it can be checked against.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from privacy import accountant
from privacy.chain import EntryKind
from privacy.ledger import Ledger
from privacy.mechanism import (
    ADD_OR_REMOVE_ONE,
    Mechanism,
    Mode,
    PrivacyParameters,
    Unit,
    check_delta,
    check_unit,
)

FORMAT = "privacy-claim-v1"

DATASET = "dataset"
RUN = "run"
SCOPES = {
    DATASET: "everything sent in all runs on this dataset",
    RUN: "everything one site sent in this run; its other runs on the same data add up in its own ledger",
}
"""What the epsilons of a claim are about, and so what is covered."""

GROUP_SIZES = (2, 3, 5, 10)
"""Images of one patient for which a card works the group's guarantee out."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim. An infinite epsilon means that nothing is promised.

    Args:
        mode: one of :class:`Mode`.
        unit: unit of privacy.
        neighboring_relation: which datasets count as neighbours.
        scope: ``"dataset"`` or ``"run"``; see :data:`SCOPES`.
        epsilon_spent: by what was released so far.
        epsilon_planned: once the study's rounds are complete.
        epsilon_max: the limit at which releases stop.
        delta: of every epsilon.
        accountant: name and version of the accountant of record.
        software: name and version of the program that made the claim.
        sample_rate: chance of a unit to be in a step; of a record where the unit is a site.
        noise_multiplier: noise deviation over the clipping norm; in the distributed modes of the guaranteed sum.
        max_grad_norm: the clipping norm, in L2.
        expected_batch_size: the public denominator.
        steps_per_round: steps between two releases.
        shares: t - c, the honest survivors whose noise is counted, in the largest cohort; 0 where noise is not shared.
        rounds_charged: releases charged within the scope.
        rounds_planned: rounds of the study.
        ledger_head: hash of the ledger's last entry in hexadecimal digits, "" where no ledger was at hand.

    Raises:
        ValueError: a value is out of range, or two contradict each other.
    """

    mode: str
    unit: str
    neighboring_relation: str
    scope: str
    epsilon_spent: float
    epsilon_planned: float
    epsilon_max: float
    delta: float
    accountant: str
    software: str
    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    expected_batch_size: float
    steps_per_round: int
    shares: int
    rounds_charged: int
    rounds_planned: int
    ledger_head: str

    def __post_init__(self) -> None:
        mode = Mode(self.mode)
        check_unit(self.unit, mode)
        check_delta(self.delta)
        if self.neighboring_relation != ADD_OR_REMOVE_ONE or self.scope not in SCOPES:
            raise ValueError(f"unknown relation {self.neighboring_relation!r} or scope {self.scope!r}")
        if not (0 <= self.epsilon_spent <= self.epsilon_planned and self.epsilon_max > 0):
            raise ValueError(f"epsilons {self.epsilon_spent}, {self.epsilon_planned} and {self.epsilon_max} do not fit")
        if mode is Mode.UNSAFE_NO_DP and not math.isinf(self.epsilon_planned):
            raise ValueError("UNSAFE-no-dp promises no epsilon")
        if mode.is_distributed != (self.shares > 0):
            raise ValueError(f"mode {mode.value} does not go with {self.shares} shares of noise")
        if min(self.rounds_charged, self.rounds_planned, self.shares) < 0 or self.steps_per_round < 1:
            raise ValueError("a count is negative")

    @property
    def is_unsafe(self) -> bool:
        """Whether nothing is promised: the mode has no noise, or something was once released without."""
        return self.mode == Mode.UNSAFE_NO_DP or math.isinf(self.epsilon_spent)

    @property
    def stamp(self) -> str:
        """``UNSAFE-no-dp`` where nothing is promised, else the mode."""
        return Mode.UNSAFE_NO_DP.value if self.is_unsafe else self.mode

    @property
    def trust(self) -> str:
        """Whom the guarantee needs."""
        if self.is_unsafe:
            return "none: there is no guarantee, whoever is trusted"
        if self.mode == Mode.RECORD_LOCAL:
            return "nobody: the noise is complete before anything leaves the site, with or without the secure sum"
        return (
            f"computational: it needs the secure sum, and at least {self.shares} honest sites that survive each round "
            "(t - c of the largest cohort; a smaller one needs fewer, each with more noise)"
        )

    @property
    def without_secure_sum(self) -> str:
        """What remains if the secure sum fails."""
        if self.is_unsafe:
            return "nothing, as with it"
        if self.mode == Mode.RECORD_LOCAL:
            return "the same guarantee"
        share = self.noise_multiplier / math.sqrt(self.shares)
        return (
            f"each site keeps only its own share of the noise, {self.noise_multiplier:g} / sqrt({self.shares}) = "
            f"{share:.3g} times the clipping norm; the epsilon above does not hold then"
        )

    @property
    def covered(self) -> str:
        """What the epsilons are about."""
        return "nothing" if self.is_unsafe else SCOPES[self.scope]

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What no number of this card speaks of."""
        named = "record" if self.unit == Unit.RECORD else "person"
        return (
            "losses, accuracies and counts that an operator reads off at the site and passes on",
            f"a {named} whose data lie at several sites: what those sites spend adds up",
            "timing, and which sites took part in which round",
            "choosing hyper-parameters by trials on the same data, where the trials are not in this ledger",
        )

    @property
    def sampling(self) -> str:
        """How units enter a step."""
        if self.unit == Unit.SITE:
            return f"every site in every round; records within it at rate {self.sample_rate:g}, which is not counted"
        return f"Poisson: each {self.unit} in a step with probability {self.sample_rate:g}, independently"

    @property
    def clipping(self) -> str:
        """What bounds one unit's influence, and the noise beside it."""
        if self.mode == Mode.UNSAFE_NO_DP:
            return "none, and no noise"
        what = "a site's whole update" if self.unit == Unit.SITE else f"each {self.unit}'s gradient"
        return (
            f"{what} to L2 norm {self.max_grad_norm:g}; noise multiplier {self.noise_multiplier:g}; divided by the "
            f"public {self.expected_batch_size:g}"
        )

    @property
    def group(self) -> str:
        """What is promised to a patient with several images; empty where patients or sites are the unit."""
        if self.unit != Unit.RECORD or self.is_unsafe:
            return ""
        worked = "; ".join(
            f"k = {k}: epsilon {epsilon:.3g}, delta {delta:.2g}" + (" (nothing)" if delta >= 1 else "")
            for k, (epsilon, delta) in (
                (k, group_privacy(min(self.epsilon_planned, self.epsilon_max), self.delta, k)) for k in GROUP_SIZES
            )
        )
        return f"a patient with k images has k*epsilon and k*e^((k-1)*epsilon)*delta. When the study is over, {worked}"

    @property
    def line(self) -> str:
        """The claim in one line, never an epsilon without what it means."""
        if self.is_unsafe:
            return f"claim: none, {Mode.UNSAFE_NO_DP.value}: released without differential privacy"
        needs = "" if self.shares == 0 else f", if the secure sum holds with {self.shares} honest sites"
        return (
            f"claim: epsilon {self.epsilon_spent:.4g} at delta {self.delta:g} per {self.unit} "
            f"({self.neighboring_relation}), {self.mode}{needs}, after {self.rounds_charged} rounds "
            f"({'this run alone' if self.scope == RUN else 'all runs'}); {self.accountant}"
        )

    def rows(self) -> tuple[tuple[str, str], ...]:
        """The card for people, (heading, text), in the order of SP 800-226's pyramid."""
        group = (("group", self.group),) if self.group else ()
        counted = f"{self.rounds_charged} charged, {self.rounds_planned} planned, {self.steps_per_round} steps each"
        return (
            ("claim", self.stamp),
            ("unit of privacy", self.unit),
            ("neighbours", f"{self.neighboring_relation}: datasets that differ by one {self.unit}"),
            ("epsilon spent", _number(self.epsilon_spent)),
            ("epsilon planned", f"{_number(self.epsilon_planned)} once the study is complete"),
            ("epsilon limit", f"{self.epsilon_max:g}: what would pass it is not released"),
            ("delta", f"{self.delta:g}"),
            ("accountant", f"{self.accountant} ({self.software})"),
            *group,
            ("mode", self.mode),
            ("trust", self.trust),
            ("without secure sum", self.without_secure_sum),
            ("covered", self.covered),
            *(("not covered", text) for text in self.not_covered),
            ("sampling", self.sampling),
            ("clipping", self.clipping),
            ("rounds", counted),
            ("ledger head", self.ledger_head or "no ledger at hand"),
        )

    def as_json(self) -> dict[str, Any]:
        """Fields and sentences; an infinite epsilon is the text ``"inf"``."""
        numbers = {name: "inf" if value == math.inf else value for name, value in asdict(self).items()}
        return {
            "format": FORMAT,
            "stamp": self.stamp,
            **numbers,
            "trust": self.trust,
            "without_secure_sum": self.without_secure_sum,
            "covered": self.covered,
            "not_covered": list(self.not_covered),
            "sampling": self.sampling,
            "clipping": self.clipping,
            "group": self.group,
        }

    def to_text(self) -> str:
        """The card as one JSON line, for the metadata of a file."""
        return json.dumps(self.as_json(), sort_keys=True, allow_nan=False)


def parse_claim(text: str) -> Claim:
    """Read a claim; its sentences are left unread, because they follow from its numbers.

    Raises:
        ValueError: not a claim, a value out of range, or a stamp that its numbers do not bear.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"not a {FORMAT}")
    values: dict[str, Any] = {}
    for field in fields(Claim):
        value = document.get(field.name)
        wanted = {"str": str, "int": int, "float": float}[str(field.type)]
        if wanted is float and (value == "inf" or (isinstance(value, int) and not isinstance(value, bool))):
            value = float(value)
        if not isinstance(value, wanted) or isinstance(value, bool) or value != value:  # noqa: PLR0124 - not a number
            raise ValueError(f"{field.name} is missing or no {field.type}")
        values[field.name] = value
    claim = Claim(**values)
    if document.get("stamp") != claim.stamp:
        raise ValueError(f"it is stamped {document.get('stamp')!r}, and its numbers say {claim.stamp!r}")
    return claim


def make_claim(ledger: Ledger, params: PrivacyParameters, *, run_id: str, rounds: int) -> Claim:
    """The claim of one dataset, over all its runs.

    Args:
        ledger: of the dataset; nothing is written.
        params: what a round of the study costs.
        run_id: the study's run.
        rounds: rounds of the study; those up to the last one charged are not planned again.

    Raises:
        PrivacyRefused: the study does not fit the ledger.
        ValueError: ``rounds`` is below 1.
    """
    ledger.epsilon_after(params)  # refuses what does not fit
    charges = [entry for entry in ledger.entries() if entry.kind is EntryKind.CHARGE]
    released = [charge.mechanism for charge in charges if not charge.is_unsafe]
    return _claim(
        params,
        scope=DATASET,
        released=released,
        unsafe=any(charge.is_unsafe for charge in charges),
        charged=len(charges),
        rounds=rounds,
        remaining=max(0, rounds - ledger.last_round(run_id)),
        epsilon_max=ledger.epsilon_max,
        ledger_head=ledger.head.hex(),
    )


def make_run_claim(params: PrivacyParameters, *, released: int, rounds: int, epsilon_max: float) -> Claim:
    """The claim of a study's run alone, the same for every site that was in every round.

    Args:
        params: what a round costs.
        released: rounds released, at least 0.
        rounds: rounds of the study.
        epsilon_max: the study's limit for a site.

    Raises:
        ValueError: a number is out of range.
    """
    if released < 0:
        raise ValueError(f"released must be at least 0, not {released}")
    unsafe = params.mode is Mode.UNSAFE_NO_DP
    return _claim(
        params,
        scope=RUN,
        released=[] if unsafe else [params.mechanism] * released,
        unsafe=unsafe and released > 0,
        charged=released,
        rounds=rounds,
        remaining=max(0, rounds - released),
        epsilon_max=epsilon_max,
        ledger_head="",
    )


def group_privacy(epsilon: float, delta: float, k: int) -> tuple[float, float]:
    """What (epsilon, delta) for one record means for k of them (Dwork and Roth 2014, section 2.3; Vadhan 2017).

    Args:
        epsilon: at least 0, or infinite.
        delta: in (0, 1].
        k: records, at least 1.

    Returns:
        Epsilon and delta of the group; a delta of 1 promises nothing.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    exponent = math.log(k) + (k - 1) * epsilon + math.log(delta) if k > 1 else math.log(delta)
    return k * epsilon, 1.0 if exponent >= 0 else math.exp(exponent)


def _claim(
    params: PrivacyParameters,
    *,
    scope: str,
    released: Sequence[Mechanism],
    unsafe: bool,
    charged: int,
    rounds: int,
    remaining: int,
    epsilon_max: float,
    ledger_head: str,
) -> Claim:
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    no_noise = params.mode is Mode.UNSAFE_NO_DP
    planned = [*released] if no_noise else [*released, *[params.mechanism] * remaining]
    spent = math.inf if unsafe else accountant.spent(released, params.delta, epsilon_max)
    after = math.inf if unsafe or no_noise else accountant.spent(planned, params.delta, epsilon_max)
    return Claim(
        mode=params.mode.value,
        unit=params.unit,
        neighboring_relation=params.neighboring_relation,
        scope=scope,
        epsilon_spent=spent,
        epsilon_planned=max(spent, after),
        epsilon_max=epsilon_max,
        delta=float(params.delta),
        accountant="none" if no_noise else accountant.name(planned, params.delta, epsilon_max),
        software=_software(),
        sample_rate=float(params.sample_rate),
        noise_multiplier=0.0 if no_noise else float(params.noise_multiplier),
        max_grad_norm=float(params.max_grad_norm),
        expected_batch_size=float(params.expected_batch_size),
        steps_per_round=params.steps_per_round,
        shares=params.noise_shares.shares if params.noise_shares is not None else 0,
        rounds_charged=charged,
        rounds_planned=rounds,
        ledger_head=ledger_head,
    )


def _software() -> str:
    try:
        return f"fedmvp-{version('fedmvp')}"
    except PackageNotFoundError:
        return "fedmvp of unknown version"


def _number(epsilon: float) -> str:
    return "infinite: no guarantee" if math.isinf(epsilon) else f"{epsilon:.6g}"
