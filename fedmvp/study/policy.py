"""The study policy: everything the consortium fixes before the first round, and signs.

A site checks each announcement of the server against its own copy of this file, so nothing that matters for privacy or
for the sum is ever taken from the network. The hash covers the exact bytes of ``policy.toml``.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from fedmvp.study.documents import Section, parse_toml, read_document, validate
from fedmvp.study.signatures import verify_document
from secure_agg.encoding import digest
from secure_agg.errors import PolicyError
from secure_agg.policy import MAX_COHORT_SITES, SecureSumPolicy

if TYPE_CHECKING:
    from fedmvp.study.noise_shares import DistributedRing
    from privacy.mechanism import PrivacyParameters

POLICY_TAG = "fedmvp/policy/v1"

MAX_ROUNDS = 100_000
MAX_DEADLINE_SECONDS = 7 * 24 * 3600.0
"""A round that waits longer than a week for one site is better aborted and tried again."""

Name = Annotated[str, Field(min_length=1, max_length=200)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=MAX_DEADLINE_SECONDS)]


class StudySection(Section):
    """[study]: which run this is and how long it lasts."""

    run_id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="unique name of the run")]
    title: Name = Field(description="one line for people")
    rounds: int = Field(ge=1, le=MAX_ROUNDS, description="rounds to complete")


class ModelSection(Section):
    """[model]: the frozen backbone and the trained prompt module."""

    backbone: Name = Field(description='"fedmvp-tiny" or an open_clip architecture name')
    pretrained: str = Field(description='"embedded", an open_clip tag, or "" when sites give a checkpoint')
    backbone_sha256: str = Field(
        default="", pattern=r"^([0-9a-f]{64})?$", description='state hash every party must load; "" pins nothing'
    )
    variant: Literal["narrow", "full", "lora"] = Field(description="which parameters are trained")
    injection: Literal["input", "last-block"] = Field(description="where the prompts enter the vision tower")
    n_prompts: int = Field(ge=1, le=1024, description="visual prompts an image")
    n_heads: int = Field(ge=1, le=256, description="attention heads of the PromptFormer")
    bottleneck_width: int = Field(ge=1, le=65536, description="inner width of the narrow variant")
    lora_rank: int = Field(default=8, ge=1, le=4096, description="rank of the low-rank pairs")
    neutral_start: Literal["anchor", "mix"] = Field(description="how round 0 is made equal to zero-shot")
    consistency_weight: NonNegativeFloat = Field(description="weight of the consistency term of the loss")
    flip: bool = Field(description="compare with the frozen feature of a mirrored view")
    probe_gain: float = Field(
        default=0.0, ge=0, le=1000, description="weight of a linear probe trained beside the prompts; 0 trains none"
    )
    initial_seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the public initial parameters")


class TaskClass(Section):
    """One class: its name (also its folder name in an image folder) and what is true of it."""

    name: Name
    attributes: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if name.startswith(".") or any(c in name for c in "/\\\0") or name != name.strip() or not name.isprintable():
            raise ValueError("a class name is also a folder name: no slash, no leading dot, no outer spaces")
        return name


class TaskSection(Section):
    """[task]: what the model is to tell apart, in words."""

    kind: Literal["single-label"] = Field(description="one class an image")
    template: Name = Field(description="sentence with {name} and {attribute}")
    classes: Annotated[tuple[TaskClass, ...], Field(min_length=2, max_length=100_000, strict=False)] = Field(
        description="the classes, in the order of the classifier"
    )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names in the classifier's order."""
        return tuple(item.name for item in self.classes)

    @property
    def sentences(self) -> tuple[tuple[str, ...], ...]:
        """For each class the template filled with each of its attributes."""
        return tuple(
            tuple(self.template.format(name=item.name, attribute=attribute) for attribute in item.attributes)
            for item in self.classes
        )

    @field_validator("template")
    @classmethod
    def _has_both_places(cls, template: str) -> str:
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"not a template: {error}") from None
        if {place for _, place, _, _ in parsed if place is not None} != {"name", "attribute"} or any(
            specification or conversion for _, _, specification, conversion in parsed
        ):
            raise ValueError("a template names {name} and {attribute}, and nothing else in braces")
        return template

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        seen: set[str] = set()
        for name in (item.name.casefold() for item in self.classes):
            if name in seen:
                raise ValueError(f"class {name!r} is listed twice (names differ by more than upper and lower case)")
            seen.add(name)
        return self


class TrainingSection(Section):
    """[training]: what a site does between two sums."""

    local_steps: int = Field(ge=1, le=1_000_000, description="DP-SGD steps a round")
    learning_rate: PositiveFloat = Field(description="step size of local SGD")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of local SGD")


class PrivacySection(Section):
    """[privacy]: what every site's releases guarantee; the same public numbers at every site."""

    mode: Literal["record-local", "record-distributed", "silo-distributed", "UNSAFE-no-dp"] = Field(
        description="who adds the noise, and to what"
    )
    unit: Literal["record", "patient", "site"] = Field(description="what is protected")
    neighboring_relation: Literal["add-or-remove-one"] = Field(description="which data sets must look alike")
    sample_rate: float = Field(gt=0, le=1, description="Poisson probability of a record to be in a step")
    noise_multiplier: float = Field(ge=0, le=1e6, description="noise deviation over max_grad_norm")
    max_grad_norm: PositiveFloat = Field(description="L2 bound of one record's gradient")
    expected_batch_size: PositiveFloat = Field(description="public denominator of a step, equal at every site")
    delta: float = Field(gt=0, lt=1e-2, description="delta of (epsilon, delta)")
    epsilon_max: float = Field(gt=0, allow_inf_nan=True, description="no site may spend more in this study")

    @model_validator(mode="after")
    def _noise_agrees_with_mode(self) -> Self:
        private = self.mode != "UNSAFE-no-dp"
        if private and not self.noise_multiplier > 0:
            raise ValueError(f'mode "{self.mode}" needs noise_multiplier above 0')
        if private and not self.epsilon_max < float("inf"):
            raise ValueError(f'mode "{self.mode}" needs a finite epsilon_max')
        if self.mode == "UNSAFE-no-dp" and self.epsilon_max != float("inf"):
            raise ValueError('mode "UNSAFE-no-dp" gives no guarantee: write epsilon_max = inf to say so')
        return self


class AggregationSection(Section):
    """[aggregation]: the secure sum and what the server does with it."""

    colluders: int = Field(ge=1, le=MAX_COHORT_SITES, description="sites that may pool what they know with the server")
    min_cohort: int = Field(ge=3, le=MAX_COHORT_SITES, description="fewest sites in a round")
    min_honest: int = Field(ge=2, le=MAX_COHORT_SITES, description="fewest honest inputs in any sum")
    max_cohort: int = Field(ge=3, le=MAX_COHORT_SITES, description="most sites in a round; bounds the ring")
    dropout_permille: int = Field(
        default=50, ge=0, le=500, description="sites of a thousand that a round of more than 100 must bear to lose"
    )
    mask_cipher: Literal["aes-256-ctr", "chacha20"] = Field(
        default="aes-256-ctr", description="cipher that stretches the masks"
    )
    ring_bits: Literal[16, 32, 64] = Field(default=32, description="bits of one masked number")
    value_range: PositiveFloat = Field(description="largest size of one coordinate of a site's update")
    server_optimizer: Literal["sgd", "adam"] = Field(description="how the mean update is applied")
    server_learning_rate: PositiveFloat = Field(description="step size at the server")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the mean; adam only")
    adam_beta2: float = Field(default=0.99, ge=0, lt=1, description="decay of the square; adam only")
    adam_epsilon: PositiveFloat = Field(default=1e-8, description="added to the root; adam only")

    def secure_sum(self, dimension: int) -> SecureSumPolicy:
        """Return the limits of a secure sum of vectors of this length; PolicyError if there is no such sum."""
        return SecureSumPolicy.from_range(
            value_range=self.value_range,
            colluders=self.colluders,
            min_cohort=self.min_cohort,
            min_honest=self.min_honest,
            max_cohort=self.max_cohort,
            dimension=dimension,
            ring_bits=self.ring_bits,
            dropout_permille=self.dropout_permille,
            mask_cipher=self.mask_cipher,
        )

    @model_validator(mode="after")
    def _sums_hide_enough(self) -> Self:
        try:
            self.secure_sum(dimension=1)
        except PolicyError as refused:
            raise ValueError(refused.args[0]) from None
        return self


class DeadlinesSection(Section):
    """[deadlines]: how long the server waits, in seconds."""

    training_seconds: Seconds = Field(default=3600.0, description="local training of one round")
    phase_seconds: Seconds = Field(default=60.0, description="each exchange of the secure sum")
    join_seconds: Seconds = Field(default=300.0, description="a round's cohort to gather")


class StudyPolicy(Section):
    """A validated policy together with the exact bytes it was read from."""

    study: StudySection
    model: ModelSection
    task: TaskSection
    training: TrainingSection
    privacy: PrivacySection
    aggregation: AggregationSection
    deadlines: DeadlinesSection = DeadlinesSection()

    _document: bytes = PrivateAttr(default=b"")

    @model_validator(mode="after")
    def _can_be_accounted_for(self) -> Self:
        try:
            self.privacy_parameters(dimension=1)
        except PolicyError as refused:
            raise ValueError(refused.args[0]) from None
        return self

    @property
    def document(self) -> bytes:
        """The exact bytes of ``policy.toml``."""
        return self._document

    @property
    def hash(self) -> bytes:
        """Hash of the exact bytes; 32 bytes, part of every round's context."""
        return digest(POLICY_TAG, self._document)

    @property
    def total_steps(self) -> int:
        """Noisy steps a site takes if it is in every round."""
        return self.study.rounds * self.training.local_steps

    def secure_sum(self, dimension: int) -> SecureSumPolicy:
        """Return the secure sum's parameters for updates of ``dimension`` coordinates.

        Raises:
            PolicyError: the ring has no room for them.
        """
        if self.is_distributed:
            return self._distributed_ring(dimension).secure_sum
        return self.aggregation.secure_sum(dimension)

    @property
    def is_distributed(self) -> bool:
        """Whether the noise is complete in the sum only."""
        return self.privacy.mode in ("record-distributed", "silo-distributed")

    def _distributed_ring(self, dimension: int) -> DistributedRing:
        from fedmvp.study.noise_shares import distributed_ring  # noqa: PLC0415 - imports what imports this module

        return distributed_ring(self, dimension)

    def privacy_parameters(self, dimension: int) -> PrivacyParameters:
        """Return what one round costs, as the ledger records it.

        Args:
            dimension: coordinates of an update; decides the grid of the distributed modes and nothing in the others.

        Raises:
            PolicyError: the ring has no room for the noise.
        """
        from privacy.mechanism import Mode, PrivacyParameters  # noqa: PLC0415 - the --help of a command needs none of it

        section = self.privacy
        return PrivacyParameters(
            noise_shares=self._distributed_ring(dimension).noise_shares if self.is_distributed else None,
            mode=Mode(section.mode),
            unit=section.unit,
            neighboring_relation=section.neighboring_relation,
            sample_rate=section.sample_rate,
            noise_multiplier=section.noise_multiplier,
            max_grad_norm=section.max_grad_norm,
            expected_batch_size=section.expected_batch_size,
            steps_per_round=self.training.local_steps,
            delta=section.delta,
        )

    @property
    def accountant(self) -> str:
        """Name of the accountant behind a site's epsilon in this study alone; "none" where there is no privacy."""
        if self.privacy.mode == "UNSAFE-no-dp":
            return "none"
        from privacy import accountant  # noqa: PLC0415 - the --help of a command needs none of it

        mechanism = self.privacy_parameters(dimension=1).mechanism  # the dimension decides no name
        return accountant.name([mechanism], self.privacy.delta, self.privacy.epsilon_max)

    def terms(self) -> Iterator[tuple[str, str]]:
        """Yield what a site agrees to by joining, as (name, value) for people."""
        yield "run", f"{self.study.run_id}: {self.study.title}"
        yield "rounds", f"{self.study.rounds} of {self.training.local_steps} steps"
        probe = ", with a probe" if self.model.probe_gain else ""
        weights = self.model.pretrained or "local checkpoint"
        yield "model", f"{self.model.backbone} ({weights}), {self.model.variant}{probe}"
        yield (
            "classes",
            f"{len(self.task.classes)}: {', '.join(self.task.class_names[:6])}"
            + (", ..." if len(self.task.classes) > 6 else ""),
        )
        yield (
            "privacy",
            (
                f"{self.privacy.mode}, unit {self.privacy.unit}, {self.privacy.neighboring_relation}, "
                f"epsilon at most {self.privacy.epsilon_max:g} at delta {self.privacy.delta:g} by {self.accountant}"
            ),
        )
        yield (
            "secure sum",
            (
                f"{self.aggregation.min_cohort} to {self.aggregation.max_cohort} sites, at least "
                f"{self.aggregation.min_honest} honest, {self.aggregation.colluders} may collude"
            ),
        )


def parse_policy(document: bytes, *, source: str = "policy.toml") -> StudyPolicy:
    """Parse a policy without asking who signed it (a template, or the policy inside a prompts file).

    Args:
        document: the exact bytes.
        source: the name shown in messages.

    Raises:
        UserError: not a valid policy.
    """
    policy = validate(
        StudyPolicy, parse_toml(document, source=source), source=source, text=document.decode("utf-8", "replace")
    )
    policy._document = document  # noqa: SLF001 - set once, here, before anybody holds the value
    return policy


def load_policy(policy: Path, signature: Path, root_key: bytes) -> StudyPolicy:
    """Read a policy and check that the consortium's root signed exactly these bytes.

    Args:
        policy: ``policy.toml``.
        signature: ``policy.toml.sig``.
        root_key: the consortium's Ed25519 public key, 32 bytes.

    Raises:
        UserError: missing, not signed by this root, or not a valid policy.
    """
    document = read_document(
        policy, what="study policy", remedy="install the study package: fedmvp-client join, or fedmvp-server enroll"
    )
    verify_document(POLICY_TAG, document, signature, root_key, source=str(policy))
    return parse_policy(document, source=str(policy))
