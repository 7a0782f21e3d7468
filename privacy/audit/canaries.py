"""Attacks on the site's own training step with invented records.

Both run :class:`privacy.dpsgd.DpSgdEngine` as a site does, with its sampler, clipping, noise and denominator, against a
ledger of their own in a temporary folder. No record and no ledger of the site is read or charged. They know the modes
in which a site's own update is protected, and ``UNSAFE-no-dp`` for comparison; in the distributed modes the sum over
the sites carries the guarantee, and attacking one site's vector would say nothing about it.

What they can show: noise that is missing, too weak or on the wrong scale; clipping that does not happen; sampling above
the stated rate; an accountant that promises far too little epsilon. What they cannot: a shortage smaller than the gap
between the attack and the proof (the bound stays well below the truth, see ``AuditReport.epsilon_ceiling``); noise that
is used twice or can be predicted, which looks like noise to them; a loss or module other than the linear one trained
here, whose per-sample gradients may be wrong; leaks that go round the update (files, logs, timing).
"""
# ruff: noqa: PLC0415 - torch and opacus are loaded when an audit runs

from __future__ import annotations

import math
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from privacy import accountant
from privacy.audit.bounds import epsilon_lower_bound, epsilon_lower_bound_from_rates
from privacy.ledger import Ledger
from privacy.mechanism import Mode, PrivacyParameters, SubsampledGaussian, Unit

if TYPE_CHECKING:
    from torch import Tensor, nn

    from privacy.per_sample import Batch

CANARY_NORM = 100.0
"""Gradient norm of a canary over the clipping norm: far above one, so that missing clipping shows."""

GUESS_FRACTION = 0.5
"""With 1,000 canaries bounds up to 5.1 are possible at delta 1e-5, and there are twice as many of a kind as guesses."""

RECORDS_PER_PATIENT = 8
"""Records of a canary where the unit is a patient: enough that clipping or sampling single records shows."""

_RUN_ID = "audit"
_POLICY = bytes(32)  # no study stands behind an audit


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Outcome of one run with canaries.

    Args:
        epsilon_lower: lower bound on epsilon at ``delta``, true with ``confidence``.
        epsilon_claimed: by the accountant for the same rounds; infinite for ``UNSAFE-no-dp``.
        epsilon_ceiling: the bound that all guesses right would have given; a claim above it cannot be contradicted by
            an audit of this size.
        delta: the delta of all three.
        confidence: in (0, 1), of ``epsilon_lower``.
        guesses: canaries that were guessed in or out.
        correct: of these, how many rightly.
        canaries: how many took part.
        unit: what one canary stands for.
        neighboring_relation: under which the epsilons are stated.
    """

    epsilon_lower: float
    epsilon_claimed: float
    epsilon_ceiling: float
    delta: float
    confidence: float
    guesses: int
    correct: int
    canaries: int
    unit: str
    neighboring_relation: str

    @property
    def contradicts_claim(self) -> bool:
        """Whether the mechanism leaks more than is claimed; False proves nothing."""
        return self.epsilon_lower > self.epsilon_claimed


@dataclass(frozen=True, slots=True)
class TwoPointReport:
    """Outcome of many single steps with and without one canary.

    Args:
        epsilon_lower: lower bound on epsilon of one step at ``delta``, true with ``confidence``.
        epsilon_claimed: by the accountant for one step; infinite for ``UNSAFE-no-dp``.
        delta: the delta of both.
        confidence: in (0, 1), of ``epsilon_lower``.
        trials: steps with the canary, and as many without.
        true_positives: steps with the canary in which it was recognised.
        false_positives: steps without it in which it was believed to be there.
        unit: what the canary stands for.
        neighboring_relation: under which the epsilons are stated.
    """

    epsilon_lower: float
    epsilon_claimed: float
    delta: float
    confidence: float
    trials: int
    true_positives: int
    false_positives: int
    unit: str
    neighboring_relation: str

    @property
    def contradicts_claim(self) -> bool:
        """Whether one step leaks more than is claimed; False proves nothing."""
        return self.epsilon_lower > self.epsilon_claimed


def audit_mechanism(
    params: PrivacyParameters,
    rounds: int,
    *,
    canaries: int = 1000,
    guess_fraction: float = GUESS_FRACTION,
    canary_norm: float = CANARY_NORM,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> AuditReport:
    """Train once on a random half of the canaries and bound epsilon by how well the updates tell which half.

    The one-run audit of Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846) with canaries in gradient space: the
    per-sample gradient of canary j points along coordinate j of a linear model and along nothing else. Each is put in
    by a fair coin of the operating system. The score of a canary is the sum of its coordinate over all released
    updates; the highest scores are guessed in and the lowest out, as many as ``guess_fraction`` says.

    A private mechanism is accused (``contradicts_claim``) with probability 1 - ``confidence`` at most; in practice much
    more seldom, since the bound is loose. See the module for what an audit cannot see.

    Args:
        params: the mechanism, as in the study.
        rounds: of the study, at least 1; rounds and steps decide the claim.
        canaries: at least 2; memory grows with the square, time in proportion to steps times square of it.
        guess_fraction: in (0, 1]; fix it before looking at any outcome. Large fractions raise the ceiling, small ones
            the bound of a mechanism that leaks little.
        canary_norm: gradient norm over ``max_grad_norm``, > 0.
        confidence: in (0, 1).
        progress: called with (rounds done, rounds in all) after each round.

    Raises:
        ValueError: a value is out of range.
    """
    guesses = 2 * round(canaries * guess_fraction / 2)
    if canaries < 2 or not 2 <= guesses <= canaries:
        raise ValueError(f"{canaries} canaries and a guess_fraction of {guess_fraction} leave nothing to guess")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    _check(params, canary_norm)
    included = _toss_coins(canaries)
    with _throwaway_ledger(params, rounds) as ledger:
        scores = _released_sum(params, rounds, included, canary_norm, ledger=ledger, progress=progress)
        claimed = ledger.spent().epsilon
    correct = int((guess_inclusions(scores, guesses) == np.where(included, 1, -1)).sum())

    def bound(right: int) -> float:
        return epsilon_lower_bound(
            canaries=canaries, guesses=guesses, correct=right, delta=params.delta, confidence=confidence
        )

    return AuditReport(
        epsilon_lower=bound(correct),
        epsilon_claimed=claimed,
        epsilon_ceiling=bound(guesses),
        delta=params.delta,
        confidence=confidence,
        guesses=guesses,
        correct=correct,
        canaries=canaries,
        unit=params.unit,
        neighboring_relation=params.neighboring_relation,
    )


def guess_inclusions(scores: npt.NDArray[np.float64], guesses: int) -> npt.NDArray[np.int64]:
    """Guess the canaries with the highest scores in and as many with the lowest out.

    Args:
        scores: (m,).
        guesses: even, at most m.

    Returns:
        (m,): 1 for in, -1 for out, 0 for no guess.
    """
    order = np.argsort(scores, kind="stable")
    guessed = np.zeros(len(scores), dtype=np.int64)
    guessed[order[: guesses // 2]] = -1
    guessed[order[len(scores) - guesses // 2 :]] = 1
    return guessed


def audit_one_step(
    params: PrivacyParameters,
    *,
    trials: int = 1000,
    threshold: float = 0.5,
    canary_norm: float = CANARY_NORM,
    confidence: float = 0.95,
) -> TwoPointReport:
    """Bound epsilon of a single step from many independent steps with one canary and many on no record at all.

    The step counts as "with" where the update along the canary's gradient passes ``threshold``; both rates are bounded
    exactly (Clopper-Pearson). It rests on the definition of privacy alone, and so guards against a mistake in the bound
    of :func:`audit_mechanism`; but it cannot see anything that takes several steps. The bound cannot exceed about
    log(trials / 4).

    Args:
        params: the mechanism; ``steps_per_round`` is ignored.
        trials: of each kind, at least 1; some milliseconds each.
        threshold: in units of what one clipped gradient adds to the update; fix it before looking.
        canary_norm: gradient norm over ``max_grad_norm``, > 0.
        confidence: in (0, 1).

    Raises:
        ValueError: a value is out of range.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, not {trials}")
    _check(params, canary_norm)
    one_step = replace(params, steps_per_round=1)
    with _throwaway_ledger(one_step, 1) as ledger:
        without, with_canary = _single_updates(one_step, trials, canary_norm, ledger)
    true_positives, false_positives = int((with_canary > threshold).sum()), int((without > threshold).sum())
    return TwoPointReport(
        epsilon_lower=epsilon_lower_bound_from_rates(
            true_positives=true_positives,
            positives=trials,
            false_positives=false_positives,
            negatives=trials,
            delta=params.delta,
            confidence=confidence,
        ),
        epsilon_claimed=_claim(one_step, 1),
        delta=params.delta,
        confidence=confidence,
        trials=trials,
        true_positives=true_positives,
        false_positives=false_positives,
        unit=params.unit,
        neighboring_relation=params.neighboring_relation,
    )


def _released_sum(
    params: PrivacyParameters,
    rounds: int,
    included: npt.NDArray[np.bool_],
    canary_norm: float,
    *,
    ledger: Ledger,
    progress: Callable[[int, int], None] | None,
) -> npt.NDArray[np.float64]:
    """Sum over the rounds of what is released along each canary, (m,): trained, charged, released as at a site."""
    import torch
    from torch import nn

    from privacy.dpsgd import DpSgdEngine

    canaries = len(included)
    module = nn.Linear(canaries, 1, bias=False)
    engine = DpSgdEngine(module, _along_the_input, params=params, ledger=ledger, learning_rate=1.0)
    owners, patients = _records(params, np.flatnonzero(included))
    records = torch.zeros(len(owners), canaries)
    records[torch.arange(len(owners)), torch.from_numpy(owners)] = canary_norm * _clip_norm(params)
    released = np.zeros(canaries)
    for round_number in range(1, rounds + 1):
        nn.init.zeros_(module.weight)  # the published model; its value changes no gradient here
        engine.run((records,), params.steps_per_round, patients=patients)
        ledger.reserve(_RUN_ID, round_number, params, _POLICY).consume()
        released += module.weight.detach().numpy()[0].astype(np.float64)
        if progress is not None:
            progress(round_number, rounds)
    return released


def _single_updates(
    params: PrivacyParameters, trials: int, canary_norm: float, ledger: Ledger
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Updates along the canary, in units of one clipped gradient: (trials,) without it and (trials,) with it."""
    import torch
    from torch import nn

    from privacy.dpsgd import DpSgdEngine

    clip_norm = _clip_norm(params)
    module = nn.Linear(2, 1, bias=False)
    engine = DpSgdEngine(
        module,
        _along_the_input,
        params=params,
        ledger=ledger,
        learning_rate=params.expected_batch_size / clip_norm,
    )
    updates = np.zeros((trials, 2))
    for trial in range(2 * trials):
        owners, patients = _records(params, np.zeros(trial % 2, dtype=np.int64))
        records = torch.zeros(len(owners), 2)
        records[:, 0] = canary_norm * clip_norm
        # Every trial starts from a newly published model, told from the last one by its second coordinate.
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[0.0, float(trial)]]))
        engine.run((records,), 1, patients=patients)
        updates[trial // 2, trial % 2] = float(module.weight.detach()[0, 0])
    return updates[:, 0], updates[:, 1]


def _records(
    params: PrivacyParameters, canaries: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], list[int] | None]:
    """To which canary each record belongs, and the patients to name to the engine, if any."""
    if params.unit != Unit.PATIENT:
        return canaries, None
    owners = np.repeat(canaries, RECORDS_PER_PATIENT)
    return owners, owners.tolist()


def _along_the_input(module: nn.Module, batch: Batch) -> Tensor:
    """A loss whose descent direction at a record is the record itself."""
    losses: Tensor = -module(batch[0]).squeeze(1)
    return losses


@contextmanager
def _throwaway_ledger(params: PrivacyParameters, rounds: int) -> Iterator[Ledger]:
    """A ledger with a budget of exactly ``rounds`` rounds that is gone afterwards."""
    unsafe = params.mode is Mode.UNSAFE_NO_DP
    with (
        tempfile.TemporaryDirectory(prefix="privacy-audit-") as folder,
        Ledger.create(
            Path(folder) / "audit.db",
            dataset_id="invented canaries",
            delta=params.delta,
            epsilon_max=_claim(params, rounds),
            unit=params.unit,
            unsafe=unsafe,
        ) as ledger,
    ):
        yield ledger


def _claim(params: PrivacyParameters, rounds: int) -> float:
    if params.mode is Mode.UNSAFE_NO_DP:
        return math.inf
    steps = rounds * params.steps_per_round
    return accountant.epsilon([SubsampledGaussian(params.sample_rate, params.noise_multiplier, steps)], params.delta)


def _clip_norm(params: PrivacyParameters) -> float:
    return 1.0 if params.mode is Mode.UNSAFE_NO_DP else params.max_grad_norm


def _check(params: PrivacyParameters, canary_norm: float) -> None:
    if params.mode not in (Mode.RECORD_LOCAL, Mode.UNSAFE_NO_DP):
        raise ValueError(f"mode {params.mode.value} protects a sum over sites, which the update of one cannot audit")
    if not (math.isfinite(canary_norm) and canary_norm > 0):
        raise ValueError(f"canary_norm must be positive, not {canary_norm}")


def _toss_coins(size: int) -> npt.NDArray[np.bool_]:
    tossed = np.frombuffer(secrets.token_bytes((size + 7) // 8), dtype=np.uint8)
    return np.unpackbits(tossed)[:size].astype(np.bool_)
