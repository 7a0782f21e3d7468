"""``fedmvp-client audit``: attacks on the site's own mechanism and on a released module, beside what is claimed.

Nothing here opens the site's ledger: the mechanism is audited with invented records against a ledger of its own, and a
released module is only evaluated. What is printed about a module depends on private records and is for the site alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmvp.cli.presentation import print_json, print_pairs
from fedmvp.cli.program import say
from fedmvp.client.progress import shown
from fedmvp.data.dataset import ImageDataset, image_folder, manifest
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import ClientConfig
from fedmvp.study.credentials import load_study
from fedmvp.study.policy import StudyPolicy
from fedmvp.study.prompts import Prompts, read_prompts
from privacy.accountant import composition
from privacy.audit import AuditReport, MembershipReport, audit_mechanism, membership_attack

STEPS_A_MINUTE = 2500
"""Steps with 1,000 canaries that one processor core takes in about a minute; time grows with the square of canaries."""

USUAL_CANARIES = 1000

NO_PROOF = (
    "A LOWER BOUND BELOW THE CLAIM PROVES NOTHING: it says that these attacks failed, not that none succeeds. "
    "Only the accountant's proof carries the claim."
)


@dataclass(frozen=True)
class AuditOptions:
    """What a person asked for.

    Args:
        rounds: of the mechanism's audit; None takes what fits into about a minute.
        canaries: invented units.
        confidence: in (0, 1).
        prompts: a released module; None leaves it out.
        held_out: images that were not trained on.
    """

    rounds: int | None = None
    canaries: int = USUAL_CANARIES
    confidence: float = 0.95
    prompts: Path | None = None
    held_out: Path | None = None

    def __post_init__(self) -> None:
        if (self.prompts is None) != (self.held_out is None):
            raise UserError(
                "--prompts and --held-out belong together",
                remedy="name the released module, and images like those trained on that were not among them",
                exit_code=ExitCode.USAGE,
            )
        if not 0 < self.confidence < 1:
            raise UserError(
                f"--confidence {self.confidence:g} does not lie between 0 and 1",
                remedy="give for example 0.95",
                exit_code=ExitCode.USAGE,
            )


def audit_site(config: ClientConfig, options: AuditOptions, style: str) -> ExitCode:
    """Run the audits and print their bounds beside the claims.

    Returns:
        ``ExitCode.AUDIT`` when a bound exceeds its claim.

    Raises:
        UserError: there is nothing that could be audited, or a file cannot be used.
    """
    policy = load_study(config.study).policy
    answers: list[dict[str, Any]] = []
    if policy.is_distributed:
        _refuse_or_skip(policy, options)
    if options.prompts is not None and options.held_out is not None:  # first: what is wrong with files shows at once
        answers.append(_audit_module(config, options.prompts, options.held_out, options.confidence))
    if not policy.is_distributed:
        answers.insert(0, _audit_mechanism(policy, options))
    contradicted = any(answer["contradicts_claim"] for answer in answers)
    if style == "json":
        print_json({"contradicts_claim": contradicted, "note": NO_PROOF, "audits": answers})
    else:
        for answer in answers:
            print_pairs((name.replace("_", " "), _text(value)) for name, value in answer.items())
    if contradicted:
        say("THE CLAIM IS CONTRADICTED: stop the run, take part in nothing, and report this with the answer above")
        return ExitCode.AUDIT
    say(NO_PROOF)
    return ExitCode.OK


def rounds_in_a_minute(policy: StudyPolicy, canaries: int) -> int:
    """How many rounds of a study an audit of about a minute covers; at least one, at most all."""
    steps = STEPS_A_MINUTE * (USUAL_CANARIES / canaries) ** 2
    return max(1, min(policy.study.rounds, math.floor(steps / policy.training.local_steps)))


def _refuse_or_skip(policy: StudyPolicy, options: AuditOptions) -> None:
    reason = (
        f"the mechanism of mode {policy.privacy.mode} cannot be audited at one site: its update carries a share of the "
        "noise only, and what is claimed holds for the sum over the sites"
    )
    if options.prompts is None:
        raise UserError(
            reason,
            remedy="audit the released module instead, which follows from the sums: --prompts FILE --held-out IMAGES",
            exit_code=ExitCode.USAGE,
        )
    say(f"left out: {reason}")


def _audit_mechanism(policy: StudyPolicy, options: AuditOptions) -> dict[str, Any]:
    rounds = options.rounds or rounds_in_a_minute(policy, options.canaries)
    parameters = policy.privacy_parameters(dimension=1)
    with shown("auditing the mechanism with invented records") as progress:
        try:
            report = audit_mechanism(
                parameters, rounds, canaries=options.canaries, confidence=options.confidence, progress=progress
            )
        except ValueError as error:
            raise UserError(
                f"the audit cannot be done: {error}",
                remedy="fedmvp-client audit --help names the ranges",
                exit_code=ExitCode.USAGE,
            ) from None
    return _mechanism_answer(policy, report, rounds)


def _mechanism_answer(policy: StudyPolicy, report: AuditReport, rounds: int) -> dict[str, Any]:
    return {
        "audited": (
            f"{policy.privacy.mode} of run {policy.study.run_id}, {rounds} of {policy.study.rounds} rounds of "
            f"{policy.training.local_steps} steps, {report.canaries} invented {report.unit}s in place of yours"
        ),
        **asdict(report),
        "accountant": policy.accountant,
        "contradicts_claim": report.contradicts_claim,
    }


def _audit_module(config: ClientConfig, file: Path, held_out: Path, confidence: float) -> dict[str, Any]:
    prompts = read_prompts(file)
    policy = prompts.policy
    if policy.privacy.unit == "site":
        raise UserError(
            f"{file} protects whole sites: images of one site cannot tell whether the site took part",
            remedy="leave --prompts out; such a module can only be audited by those who hold several sites' records",
            exit_code=ExitCode.USAGE,
        )
    trained_on, others = _dataset(config, policy, config.data.path), _dataset(config, policy, held_out)
    losses = [_by_unit(values, data) for values, data in zip(
        _losses(config, prompts, (trained_on, others)), (trained_on, others), strict=True
    )]  # fmt: skip
    try:
        report = membership_attack(losses[0], losses[1], delta=policy.privacy.delta, confidence=confidence)
    except ValueError as error:
        raise UserError(
            f"the attack cannot be done: {error}", remedy=f"name more images, both at the site and in {held_out}"
        ) from None
    return _module_answer(file, prompts, replace(report, unit=policy.privacy.unit))


def _module_answer(file: Path, prompts: Prompts, report: MembershipReport) -> dict[str, Any]:
    policy = prompts.policy
    claimed = math.inf
    if policy.privacy.mode != "UNSAFE-no-dp":
        mechanism = policy.privacy_parameters(len(prompts.parameters)).mechanism
        claimed = composition([mechanism] * prompts.round, policy.privacy.delta)
    return {
        "audited": (
            f"{file}, {policy.privacy.mode} of run {policy.study.run_id} after {prompts.round} rounds, by the loss of "
            f"each {policy.privacy.unit}; held-out images that differ in kind from yours look like a leak"
        ),
        "epsilon_claimed": claimed,
        **asdict(report),
        "accountant": policy.accountant,
        "contradicts_claim": report.epsilon_lower > claimed,
    }


def _dataset(config: ClientConfig, policy: StudyPolicy, path: Path) -> ImageDataset:
    """The site's images, or the held-out ones: a folder, or a CSV manifest."""
    own = path == config.data.path
    is_manifest = config.data.kind == "manifest" if own else not path.is_dir()
    required = config.data.require_every_class if own else False
    dataset = (manifest if is_manifest else image_folder)(path, policy.task.class_names, require_every_class=required)
    if policy.privacy.unit == "patient" and dataset.patients is None:
        raise UserError(
            f"the module protects patients, and {path} does not say whose image each one is",
            remedy="name a CSV file with the columns image,label,patient",
        )
    return dataset


def _by_unit(losses: NDArray[np.float64], dataset: ImageDataset) -> NDArray[np.float64]:
    """One loss a unit: of each record, or the mean over a patient's."""
    if dataset.patients is None:
        return losses
    by_patient: dict[str, list[float]] = {}
    for patient, loss in zip(dataset.patients, losses.tolist(), strict=True):
        by_patient.setdefault(patient, []).append(loss)
    return np.array([np.mean(values) for values in by_patient.values()])


def _losses(config: ClientConfig, prompts: Prompts, datasets: Sequence[ImageDataset]) -> list[NDArray[np.float64]]:
    """The loss of every image (n,) under a module; nothing is written, not even to the cache."""
    import torch  # noqa: PLC0415 - a refusal needs no torch

    from fedmvp.client.trainer import choose_device, tower_options_of  # noqa: PLC0415
    from fedmvp.model.from_policy import build_prompted_model  # noqa: PLC0415
    from fedmvp.model.parameters import set_vector  # noqa: PLC0415

    model = build_prompted_model(
        prompts.policy,
        device=choose_device(config.compute.device),
        options=tower_options_of(config.compute),
        checkpoint=config.compute.checkpoint,
    )
    try:
        set_vector(model, prompts.parameters)
    except ValueError as error:
        raise UserError(
            f"the prompts file does not fit its own policy: {error}", remedy="get the file again from the run"
        ) from None
    with torch.no_grad():
        return [_losses_of(model, dataset) for dataset in datasets]


def _losses_of(model: Any, dataset: ImageDataset) -> NDArray[np.float64]:
    import torch  # noqa: PLC0415

    from fedmvp.data.images import load_images  # noqa: PLC0415
    from fedmvp.model.features import extract_features  # noqa: PLC0415

    with shown(f"reading {dataset.source}") as progress:
        images, labels = load_images(dataset, model.backbone.image_size, progress=progress)
    with shown(f"computing losses of {dataset.source}") as progress:
        features = extract_features(model, images, progress=progress)
    device, losses, start = model.backbone.device, [], 0
    for part in features.parts(256):
        inputs = {name: value.to(device) for name, value in part.items()}
        size = len(next(iter(inputs.values())))
        targets = labels[start : start + size].to(device)
        losses.append(model.loss_per_sample(model(inputs), inputs, targets).cpu())
        start += size
    values: NDArray[np.float64] = torch.cat(losses).numpy().astype(np.float64)
    return values


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "YES" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
