"""A linear probe beside the prompts: in training, in inference, in an exported program, in a policy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedmvp.errors import UserError
from fedmvp.model import inference
from fedmvp.model.export import export_model, run_program
from fedmvp.model.inference import Predictor
from fedmvp.model.loading import BackboneSpec, load_backbone
from fedmvp.model.parameters import dimension
from fedmvp.model.probe import CandidateProbe, synthetic_centre
from fedmvp.model.prompted import PromptedModel
from tests.model.tiny import random_images, tiny_backbone, tiny_model

TRAINED = ("cat", "car", "tree")
FEATURES = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))


def disturbed(model: torch.nn.Module) -> None:
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws))


def trained_model(gain: float = 4.0) -> PromptedModel:
    model = tiny_model(probe_gain=gain)
    disturbed(model)
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("candidates", [TRAINED, ("tree", "cat"), ("dog", "car", "bus", "tree", "cat")])
def test_candidates_have_the_logit_of_their_row_or_none(candidates: tuple[str, ...], bias: bool) -> None:
    centre = synthetic_centre(tiny_backbone())
    whole, asked = (CandidateProbe(tiny_backbone(), names, TRAINED, bias=bias) for names in (TRAINED, candidates))
    disturbed(whole)
    asked.load_state_dict(whole.state_dict())
    logits: Tensor = whole(FEATURES)
    centred = torch.nn.functional.normalize(FEATURES - centre, dim=-1)
    torch.testing.assert_close(logits, whole.layer(centred))
    column = dict(zip(TRAINED, logits.T, strict=True))
    expected = torch.stack([column.get(name, torch.zeros(4)) for name in candidates], dim=1)
    torch.testing.assert_close(asked(FEATURES), expected)
    parts = [asked.part(FEATURES, first, 2) for first in range(0, len(candidates), 2)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected)


def test_a_model_with_a_probe_starts_where_it_would_without_and_leaves_it() -> None:
    with_probe, without = tiny_model(probe_gain=4.0), tiny_model()
    assert dimension(with_probe) - dimension(without) == len(TRAINED) * tiny_backbone().joint_width
    feature = torch.nn.functional.normalize(FEATURES, dim=-1)
    assert torch.equal(with_probe.logits(feature), without.logits(feature))
    disturbed(with_probe)
    assert not torch.allclose(with_probe.logits(feature), without.logits(feature))


def test_the_loss_pulls_at_the_probe_and_at_the_prompts() -> None:
    model = trained_model()
    features = Predictor(model).read(random_images(4))
    loss = model.loss_per_sample(model(features), features, torch.tensor([0, 1, 2, 0])).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_inference_and_an_exported_program_hold_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = trained_model(), random_images(3)
    monkeypatch.setattr(inference, "_FEWEST_CLASSES", 2)
    predictor = Predictor(model, working_bytes=1)  # three classes in two parts
    features = predictor.read(images)
    with torch.no_grad():
        expected = model.logits(model(features))
        without = model.logit_scale * model(features) @ model.bank.classifier.T
    torch.testing.assert_close(predictor.logits(predictor.feature(features)), expected, atol=1e-4, rtol=1e-4)
    likeliest = predictor.rank(predictor.feature(features), 3)
    torch.testing.assert_close(likeliest.classes, expected.argsort(dim=1, descending=True))
    sentences = Predictor(model, tuned=False)
    torch.testing.assert_close(sentences.logits(sentences.feature(features)), without, atol=1e-4, rtol=1e-4)
    exported = export_model(model)
    torch.testing.assert_close(run_program(exported.program, exported.tensors, images), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, without, atol=1e-2)


def test_the_centre_stays_what_it_was() -> None:
    """Every party computes it anew, and probes that were trained around another would answer otherwise."""
    centre = synthetic_centre(load_backbone(BackboneSpec("fedmvp-tiny", "embedded", "", None)))
    expected = torch.tensor([-0.0270, -0.1159, 0.1028, -0.0779, -0.0651, 0.0190])
    torch.testing.assert_close(centre[:6], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("gain", [-1.0, float("nan"), float("inf")])
def test_a_gain_that_is_none_is_refused(gain: float) -> None:
    with pytest.raises(UserError, match="probe_gain"):
        tiny_model(probe_gain=gain)
