from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedmvp.methods.features import read_images
from fedmvp.methods.fedmvp import FedMvp
from fedmvp.methods.objective import UNKNOWN, Calibration, MultiLabel, SingleLabel, calibrate
from tests.methods.toys import CLASSES, OBJECTIVES, SMALL, TOWER, build
from tests.model.tiny import disturb, random_images

DRAWS = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(6, 4, generator=DRAWS)
LABELS = torch.randint(0, 2, (6, 4), generator=DRAWS)


def test_without_focusing_it_is_binary_cross_entropy_summed_within_a_sample() -> None:
    expected = F.binary_cross_entropy_with_logits(LOGITS, LABELS.float(), reduction="none").sum(dim=1)
    torch.testing.assert_close(MultiLabel()(LOGITS, LABELS), expected)


@pytest.mark.parametrize(("positive", "negative", "margin"), [(0, 4, 0.05), (1, 4, 0.0), (2, 2, 0.3), (0, 0, 0.1)])
def test_the_asymmetric_loss_is_its_definition_term_by_term(positive: float, negative: float, margin: float) -> None:
    found = MultiLabel(focus_positive=positive, focus_negative=negative, margin=margin)(LOGITS, LABELS)
    for sample, logits, labels in zip(found, LOGITS.double(), LABELS, strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for logit, label in zip(logits, labels, strict=True):
            p = torch.sigmoid(logit)
            shifted = max(float(p) - margin, 0.0)
            if label == 1:
                total -= (1 - p) ** positive * p.log()
            else:
                total -= shifted**negative * torch.log(torch.tensor(1 - shifted, dtype=torch.float64))
        assert float(sample) == pytest.approx(float(total), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("objective", ["binary", "asymmetric"])
def test_a_label_nobody_decided_adds_nothing(objective: str) -> None:
    labels = LABELS.clone()
    labels[:, 2] = UNKNOWN
    others = [0, 1, 3]
    found = OBJECTIVES[objective](LOGITS, labels)
    torch.testing.assert_close(found, OBJECTIVES[objective](LOGITS[:, others], labels[:, others]))


@pytest.mark.parametrize("objective", ["binary", "asymmetric"])
def test_the_loss_and_its_gradient_stay_finite_for_huge_logits(objective: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    loss = OBJECTIVES[objective](logits, torch.tensor([[1, 1, 0, 0]]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


def test_calibration_brings_public_logits_to_the_prevalence_and_keeps_their_order() -> None:
    public = 30 + torch.randn(200, 3, generator=DRAWS)
    calibration = calibrate(public, scale=0.5, prevalence=0.2)
    odds = calibration(public)
    torch.testing.assert_close(torch.sigmoid(odds.mean(dim=0)), torch.full((3,), 0.2), atol=1e-5, rtol=0)
    assert torch.equal(odds.argsort(dim=0), public.argsort(dim=0))
    flat = torch.sigmoid(public).max() - torch.sigmoid(public).min()
    assert flat < 1e-6, "the control: without calibration the sigmoid tells nothing apart"


@pytest.mark.parametrize(("scale", "prevalence", "rows"), [(0.0, 0.5, 3), (1.0, 0.0, 3), (1.0, 1.0, 3), (1.0, 0.5, 0)])
def test_calibration_out_of_range_is_refused(scale: float, prevalence: float, rows: int) -> None:
    with pytest.raises(ValueError, match="calibration needs"):
        calibrate(torch.zeros(rows, 2), scale=scale, prevalence=prevalence)


@pytest.mark.parametrize("other", [{"focus_positive": 0.5}, {"focus_negative": -1.0}, {"margin": 1.0}])
def test_powers_without_a_bounded_gradient_are_refused(other: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"power|margin"):
        MultiLabel(Calibration(), **other)


@pytest.mark.parametrize(
    "labels", [torch.zeros(5).long(), torch.zeros(5, 3).long(), torch.full((5, 4), 2), torch.full((5, 4), 0.5)]
)
def test_labels_of_another_kind_are_refused(labels: Tensor) -> None:
    MultiLabel().check_labels(LABELS, 4)
    with pytest.raises(ValueError, match="4 numbers an image"):
        MultiLabel().check_labels(labels, 4)
    with pytest.raises(ValueError, match="one class index"):
        SingleLabel().check_labels(torch.tensor([0.0, 1.0]), 4)


@pytest.mark.parametrize("name", ["fedmvp-narrow", "fedmvp with consistency"])
def test_fedmvps_loss_is_the_one_that_a_study_trains(name: str) -> None:
    model = build(name)
    features = read_images(model, random_images(5)).tensors
    disturb(model)
    labels = torch.tensor([0, 1, 2, 1, 0])
    prompted = model.prompted
    expected = prompted.loss_per_sample(prompted(features), features, labels)
    torch.testing.assert_close(model.loss_per_sample(features, labels, SingleLabel()), expected)
    assert isinstance(FedMvp(SMALL).build(TOWER, CLASSES), type(model))
