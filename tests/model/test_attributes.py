from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedmvp.errors import UserError
from fedmvp.model.attributes import build_attribute_bank
from fedmvp.model.backbone import Backbone
from fedmvp.model.task import Task, TaskClass
from tests.model.tiny import TASK, tiny_backbone, tiny_bank


def test_classes_may_have_different_numbers_of_attributes() -> None:
    bank = tiny_bank()
    assert bank.attributes.shape == (3, 3, 24)
    assert bank.mask.tolist() == [[True, True, True], [True, True, False], [True, True, True]]
    torch.testing.assert_close(bank.attributes.norm(dim=-1), bank.mask.float())


def test_the_bank_conditions_on_bare_attributes_and_classifies_with_sentences() -> None:
    bank, backbone = tiny_bank(), tiny_backbone()
    torch.testing.assert_close(bank.attributes[1, :2], backbone.encode_sentences(["four wheels", "a metal body"]))
    sentences = ["a photo of a car, which has four wheels", "a photo of a car, which has a metal body"]
    torch.testing.assert_close(bank.classifier[1], backbone.encode_sentences(sentences).mean(dim=0))
    assert bank.classifier[1].norm() < 1  # a mean of unit vectors, not normalised again


def test_conditioning_is_centred_over_attributes_with_unit_rms() -> None:
    conditioning = tiny_bank().conditioning
    assert conditioning.shape == (8, 24)
    torch.testing.assert_close(conditioning.mean(dim=0), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(conditioning.square().mean(), torch.tensor(1.0))


def test_a_second_build_reads_the_cache_and_encodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_attribute_bank(tiny_backbone(), TASK, cache_dir=tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("the text tower ran again")

    monkeypatch.setattr(Backbone, "encode_sentences", refuse)
    second = build_attribute_bank(tiny_backbone(), TASK, cache_dir=tmp_path)
    assert torch.equal(first.attributes, second.attributes)
    assert torch.equal(first.classifier, second.classifier)
    with pytest.raises(AssertionError, match="ran again"):
        build_attribute_bank(
            tiny_backbone(), Task(TASK.classes, "a drawing of a {name}, {attribute}"), cache_dir=tmp_path
        )


def test_the_same_sentences_in_other_classes_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    one = Task((TaskClass("a", ("x", "y")), TaskClass("b", ("z",))), template="{name} {attribute}")
    two = Task((TaskClass("a", ("x",)), TaskClass("a", ("y",)), TaskClass("b", ("z",))), template="{name} {attribute}")
    assert one.sentences == two.sentences
    assert build_attribute_bank(tiny_backbone(), one, cache_dir=tmp_path).classifier.shape[0] == 2
    assert build_attribute_bank(tiny_backbone(), two, cache_dir=tmp_path).classifier.shape[0] == 3


def test_a_task_without_attributes_is_the_users_message() -> None:
    with pytest.raises(UserError, match="at least one attribute"):
        Task((TaskClass("cat", ()),))


def test_a_bank_whose_file_was_changed_in_any_bit_is_encoded_again(tmp_path: Path) -> None:
    bank = build_attribute_bank(tiny_backbone(), TASK, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for place in (3, 40, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        again = build_attribute_bank(tiny_backbone(), TASK, cache_dir=tmp_path)
        assert torch.equal(again.classifier, bank.classifier)
        assert torch.equal(again.attributes, bank.attributes)
        assert file.read_bytes() == content


def test_a_folder_that_refuses_a_bank_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bank = build_attribute_bank(tiny_backbone(), TASK, cache_dir=tmp_path / "file" / "cache")
    assert bank.classifier.shape[0] == 3
