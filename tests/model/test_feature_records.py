from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from structlog.testing import capture_logs
from torch import Tensor

from fedmvp.data.dataset import ImageDataset
from fedmvp.data.source import ImageFiles, PixelTensor
from fedmvp.errors import UserError
from fedmvp.model import feature_records
from fedmvp.model.backbone import Backbone
from fedmvp.model.feature_cache import FeatureCache
from fedmvp.model.feature_records import FeatureLimits, FeatureRecords, gather_features
from fedmvp.model.features import extract_features
from fedmvp.model.frozen import MIRRORED, SummaryStage, summarise_images
from fedmvp.model.loading import random_backbone
from fedmvp.model.prompt_config import Injection, NeutralStart, PromptConfig, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.model.rows import IN_FLOAT16, RowLayout
from tests.model.caches import sealed, sealed_files
from tests.model.test_sealed import in_clear
from tests.model.tiny import CHOICES, random_images, tiny_backbone, tiny_bank, tiny_config, tiny_model

COUNT = 9
IMAGES = random_images(COUNT)
CPU = torch.device("cpu")
FLOAT16_ROUNDING = {"rtol": 2**-11, "atol": 2**-25}
"""Half a unit in the last of eleven bits, or of the smallest number."""


def gather(
    model: PromptedModel, *, cache: FeatureCache | None = None, in_memory: int = COUNT, images: Tensor = IMAGES
) -> FeatureRecords:
    """The records of the images with room in memory for so many rows."""
    whole = FeatureRecords(model, PixelTensor(images), None, FeatureLimits())
    limits = FeatureLimits(memory_bytes=in_memory * whole.row_bytes, batch_size=4)
    return gather_features(model, PixelTensor(images), cache=cache, limits=limits)


def tower_must_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the tower ran")

    monkeypatch.setattr(PromptedModel, "summarise", refuse)


def tower_is_counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which the size of each batch through the tower is added."""
    seen: list[int] = []
    summarise = PromptedModel.summarise

    def counted(self: PromptedModel, pixels: Tensor) -> dict[str, Tensor]:
        seen.append(len(pixels))
        return summarise(self, pixels)

    monkeypatch.setattr(PromptedModel, "summarise", counted)
    return seen


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_features_are_the_same_in_memory_on_disk_and_computed(
    variant: Variant, injection: Injection, start: NeutralStart, tmp_path: Path
) -> None:
    model = tiny_model(variant, injection, start, flip=True, consistency_weight=1.0)
    in_memory = gather(model)
    on_disk = gather(model, cache=sealed(tmp_path), in_memory=0)
    mixed = gather(model, cache=sealed(tmp_path, max_gb=on_disk.row_bytes * 4 / 1e9), in_memory=3)
    computed = gather(model, in_memory=0)
    positions = np.array([7, 0, 3, 3, 8, 1])
    for size in (6, 4, 1):
        expected = in_memory.take(positions[:size], CPU)
        for found, same in zip(on_disk.take(positions[:size], CPU), expected, strict=True):
            assert torch.equal(found, same)
        for records in (mixed, computed):  # other batches through the tower: other rounding before float16's
            for found, same in zip(records.take(positions[:size], CPU), expected, strict=True):
                torch.testing.assert_close(found, same, rtol=2e-3, atol=1e-5)
    assert in_memory.names == model.feature_names
    assert tuple(tuple(tensor.shape[1:]) for tensor in in_memory.take(positions, CPU)) == in_memory.shapes


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_only_large_tensors_are_rounded_and_by_no_more_than_float16_rounds(
    variant: Variant, injection: Injection, start: NeutralStart
) -> None:
    model = tiny_model(variant, injection, start, flip=True, consistency_weight=1.0)
    exact = summarise_images(model, IMAGES)
    layout = SummaryStage(model, "").layout
    assert {name: tuple(value.shape[1:]) for name, value in exact.items()} == dict(layout.shapes)
    kept = layout.unpack(torch.from_numpy(layout.pack(exact)))
    for name, value in exact.items():
        if name in IN_FLOAT16:
            torch.testing.assert_close(kept[name], value, **FLOAT16_ROUNDING)
            assert not torch.equal(kept[name], value)
        else:
            assert torch.equal(kept[name], value)


def test_a_number_beyond_float16_is_held_at_its_end_and_one_that_is_none_stays_none() -> None:
    layout = RowLayout((("tokens", (3,)), ("zero_shot", (1,))))
    part = {"tokens": torch.tensor([[1e6, -torch.inf, torch.nan]]), "zero_shot": torch.tensor([[1e6]])}
    kept = layout.unpack(torch.from_numpy(layout.pack(part)))
    assert kept["tokens"][0, :2].tolist() == [65504.0, -65504.0]
    assert kept["tokens"][0, 2].isnan()
    assert kept["zero_shot"].item() == 1e6
    with pytest.raises(ValueError, match="tokens has shape"):
        layout.pack({**part, "tokens": torch.zeros(1, 4)})


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_before_training_the_feature_from_the_cache_is_exactly_zero_shot_clips(
    variant: Variant, injection: Injection, start: NeutralStart, tmp_path: Path
) -> None:
    model = tiny_model(variant, injection, start)
    exact = extract_features(model, IMAGES).tensors["zero_shot"]
    for _ in ("computed", "read"):
        features = extract_features(model, IMAGES, cache=sealed(tmp_path)).tensors
        with torch.no_grad():
            assert torch.equal(model(features), F.normalize(features["zero_shot"], dim=-1))
            assert torch.equal(features["zero_shot"], exact)
            one = {name: value[2:3] for name, value in features.items()}
            torch.testing.assert_close(model(one), exact[2:3], atol=1e-6, rtol=0)


def test_what_float16_changes_in_the_logits_of_a_trained_module_is_small() -> None:
    for injection in Injection:
        model = tiny_model(injection=injection)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
            exact = extract_features(model, IMAGES).tensors
            kept = dict(zip(model.feature_names, gather(model).take(np.arange(COUNT), CPU), strict=True))
            before, after = model.logits(model(exact)), model.logits(model(kept))
        assert (model.logits(exact["zero_shot"]) - before).abs().max() > 0.1  # the module does something
        torch.testing.assert_close(after, before, atol=0.02, rtol=0)


def test_a_second_run_reads_the_cache_and_neither_tower_nor_anchor_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(flip=True, consistency_weight=1.0)
    first = extract_features(model, IMAGES, cache=sealed(tmp_path))
    tower_must_not_run(monkeypatch)
    monkeypatch.setattr(PromptedModel, "anchor", None)
    monkeypatch.setattr(Backbone, "encode_images", None)
    calls: list[tuple[int, int]] = []
    second = extract_features(
        model, IMAGES, cache=sealed(tmp_path), progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(COUNT, COUNT)]
    for name, value in first.tensors.items():
        assert torch.equal(value, second.tensors[name])


def other_weights() -> PromptedModel:
    model = tiny_model()
    return PromptedModel(random_backbone(tiny_config(), seed=4, name="tiny"), tiny_bank(), model.config)


def other_normalisation() -> PromptedModel:
    backbone = tiny_backbone()
    other = Backbone(
        backbone.model, None, name="tiny", image_mean=(0.4, 0.4, 0.4), image_std=backbone.image_std  # type: ignore[arg-type]
    )  # fmt: skip
    return PromptedModel(other, tiny_bank(), tiny_model().config)


@pytest.mark.parametrize(
    "changed",
    [
        other_weights,
        other_normalisation,
        lambda: tiny_model(injection=Injection.INPUT),
        lambda: tiny_model(n_prompts=8),
        lambda: tiny_model(flip=True, consistency_weight=1.0),
    ],
    ids=["weights", "normalisation", "injection", "prompts", "flip"],
)
def test_nothing_is_taken_from_the_cache_of_another_backbone_or_preprocessing(
    changed: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_features(tiny_model(), IMAGES, cache=sealed(tmp_path))
    model = changed()  # type: ignore[operator]
    tower_must_not_run(monkeypatch)
    with pytest.raises(AssertionError, match="the tower ran"):
        extract_features(model, IMAGES, cache=sealed(tmp_path))


def test_another_size_or_another_precision_is_another_kind_of_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    identity = SummaryStage(model, "fit to 16 px").identity
    assert SummaryStage(tiny_model(), "fit to 16 px").identity == identity
    assert SummaryStage(model, "stretched to 16 px").identity != identity
    monkeypatch.setattr(Backbone, "precision", "bfloat16")
    assert SummaryStage(model, "fit to 16 px").identity != identity


def test_only_an_image_that_is_new_runs_through_the_tower_and_one_that_is_gone_leaves_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    gather(model, cache=sealed(tmp_path)).close()
    size = sum(file.stat().st_size for file in sealed_files(tmp_path))
    seen = tower_is_counted(monkeypatch)
    changed = IMAGES.clone()
    changed[3, 1, 2, 2] ^= 1
    records = gather(model, cache=sealed(tmp_path), images=changed[:-1])  # one changed by a single bit, one deleted
    assert sum(seen) == 1
    for found, expected in zip(
        records.take(np.arange(COUNT - 1), CPU), gather(model, images=changed[:-1]).take(np.arange(8), CPU), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)
    records.close()
    assert sum(file.stat().st_size for file in sealed_files(tmp_path)) < size


def test_the_order_of_the_images_does_not_matter_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    first = gather(model, cache=sealed(tmp_path))
    tower_must_not_run(monkeypatch)
    second = gather(model, cache=sealed(tmp_path), images=IMAGES.flip(0))
    for value, turned in zip(first.take(np.arange(9), CPU), second.take(np.arange(9)[::-1].copy(), CPU), strict=True):
        assert torch.equal(value, turned)


def test_the_anchor_is_never_taken_from_another_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = extract_features(tiny_model(), IMAGES, cache=sealed(tmp_path))
    tower_must_not_run(monkeypatch)  # what does not depend on the start is not computed again
    other = extract_features(tiny_model(initial_seed=7), IMAGES, cache=sealed(tmp_path))
    assert torch.equal(first.tensors["zero_shot"], other.tensors["zero_shot"])
    assert not torch.allclose(first.tensors["anchor"], other.tensors["anchor"], atol=1e-4)


def test_the_anchor_is_never_taken_from_another_task(tmp_path: Path) -> None:
    model = tiny_model()
    first = extract_features(model, IMAGES, cache=sealed(tmp_path))
    bank = replace(tiny_bank(), attributes=tiny_bank().attributes.flip(-1))
    other = PromptedModel(tiny_backbone(), bank, model.config)
    second = extract_features(other, IMAGES, cache=sealed(tmp_path))
    assert not torch.allclose(first.tensors["anchor"], second.tensors["anchor"], atol=1e-4)


@pytest.mark.parametrize("in_memory", [COUNT, 0])
@pytest.mark.parametrize("place", [30, 400, -30], ids=["salt", "row", "index"])
def test_damage_on_disk_is_computed_again_and_never_used(tmp_path: Path, place: int, in_memory: int) -> None:
    model = tiny_model()
    expected = gather(model, cache=sealed(tmp_path)).take(np.arange(COUNT), CPU)
    for file in sealed_files(tmp_path):
        content = bytearray(file.read_bytes())
        content[place] ^= 0x40
        file.write_bytes(content)
    for _ in ("damaged", "again"):
        records = gather(model, cache=sealed(tmp_path), in_memory=in_memory)
        for found, same in zip(records.take(np.arange(COUNT), CPU), expected, strict=True):
            torch.testing.assert_close(found, same, rtol=2e-3, atol=1e-5)
        records.close()
    with capture_logs() as lines:
        records = gather(model, cache=sealed(tmp_path))
        records.close()
    assert lines == []


def test_damage_that_happens_during_a_run_is_computed_again(tmp_path: Path) -> None:
    model = tiny_model()
    records = gather(model, cache=sealed(tmp_path), in_memory=0)
    expected = records.take(np.arange(COUNT), CPU)
    for file in sealed_files(tmp_path):
        file.write_bytes(bytes(file.stat().st_size))
    with capture_logs() as lines:
        for found, same in zip(records.take(np.arange(COUNT), CPU), expected, strict=True):
            torch.testing.assert_close(found, same, rtol=2e-3, atol=1e-5)
    assert lines
    assert not any(str(value) in str(lines) for value in expected[0].flatten()[:20].tolist())


def test_no_feature_of_an_image_stands_on_disk_in_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(flip=True, consistency_weight=1.0)
    records = gather(model, cache=sealed(tmp_path))
    rows = [bytes(row) for row in records._memory.numpy()]
    digests = list(PixelTensor(IMAGES).digests())
    records.close()
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert not in_clear(written, [*rows, *digests])
    assert MIRRORED in dict(SummaryStage(model, "").layout.shapes)


def test_control_the_same_search_finds_features_that_are_not_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmvp.model.sealed.AESGCM", Plain)
    records = gather(tiny_model(), cache=sealed(tmp_path))
    rows = [bytes(row) for row in records._memory.numpy()]
    records.close()
    written = b"".join(file.read_bytes() for file in sealed_files(tmp_path))
    assert all(in_clear(written, [row]) for row in rows)


class Plain:
    """A cipher that is none."""

    def __init__(self, _key: bytes) -> None: ...

    def encrypt(self, _nonce: bytes, data: bytes, _context: bytes) -> bytes:
        return data + bytes(16)

    def decrypt(self, _nonce: bytes, data: bytes, _context: bytes) -> bytes:
        return data[:-16]


def test_memory_holds_no_more_rows_than_its_bound() -> None:
    records = gather(tiny_model(), in_memory=5)
    assert records._memory.numel() == 5 * records.row_bytes
    assert len(records) == COUNT


def test_what_neither_memory_nor_disk_has_room_for_is_not_computed_in_advance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tower_is_counted(monkeypatch)
    gather(tiny_model(), in_memory=0)
    assert seen == []
    gather(tiny_model(), cache=sealed(tmp_path, max_gb=1e-7), in_memory=0)
    assert seen == [4]  # one batch, until the folder is found to have no room
    assert sealed_files(tmp_path) == []


def test_on_a_full_disk_features_are_computed_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    expected = gather(model).take(np.arange(COUNT), CPU)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with capture_logs() as lines:
        records = gather(model, cache=sealed(tmp_path), in_memory=0)
        for found, same in zip(records.take(np.arange(COUNT), CPU), expected, strict=True):
            torch.testing.assert_close(found, same, rtol=2e-3, atol=1e-5)
        in_memory = gather(model, cache=sealed(tmp_path)).take(np.arange(COUNT), CPU)
    assert sealed_files(tmp_path) == []
    assert {line["reason"] for line in lines} == {"No space left on device"}
    assert all(torch.equal(found, same) for found, same in zip(in_memory, expected, strict=True))


def test_a_gpu_is_the_current_one_while_memory_is_pinned_for_it() -> None:
    chosen = feature_records._current(torch.device("cuda:1"))
    assert isinstance(chosen, torch.cuda.device)
    assert chosen.idx == 1
    assert isinstance(feature_records._current(CPU), nullcontext)


def test_records_without_images_are_empty_tensors() -> None:
    records = gather(tiny_model(), images=IMAGES[:0])
    assert len(records) == 0
    assert {name: tuple(value.shape) for name, value in records.all().items()}["zero_shot"] == (0, 24)


def picture(path: Path, seed: int, size: int = 20) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)).save(path)
    return path


def files(tmp_path: Path, count: int = 5) -> ImageDataset:
    paths = tuple(picture(tmp_path / f"{i}.png", i) for i in range(count))
    return ImageDataset(paths, (0,) * count, ("a",), tmp_path)


def test_files_are_decoded_once_whatever_the_number_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, model = files(tmp_path), tiny_model()
    first = gather_features(model, ImageFiles(dataset, 16), cache=sealed(tmp_path))
    monkeypatch.setattr("fedmvp.data.source.decode_image", None)
    second = gather_features(model, ImageFiles(dataset, 16), cache=sealed(tmp_path))
    for value, same in zip(first.take(np.arange(5), CPU), second.take(np.arange(5), CPU), strict=True):
        assert torch.equal(value, same)


def test_a_file_that_was_replaced_between_two_runs_is_noticed(tmp_path: Path) -> None:
    dataset, model = files(tmp_path), tiny_model()
    before = gather_features(model, ImageFiles(dataset, 16), cache=sealed(tmp_path)).take(np.arange(5), CPU)
    picture(tmp_path / "2.png", seed=77)
    after = gather_features(model, ImageFiles(dataset, 16), cache=sealed(tmp_path)).take(np.arange(5), CPU)
    same = [torch.equal(old, new) for old, new in zip(before[0], after[0], strict=True)]
    assert same == [True, True, False, True, True]


def test_a_file_that_changes_or_goes_while_a_run_needs_it_stops_the_run_with_its_name(tmp_path: Path) -> None:
    dataset, model = files(tmp_path), tiny_model()
    records = gather_features(model, ImageFiles(dataset, 16), limits=FeatureLimits(memory_bytes=0))
    records.take(np.arange(5), CPU)
    picture(tmp_path / "2.png", seed=77)
    with pytest.raises(UserError, match=r"2\.png was changed while"):
        records.take(np.arange(5), CPU)
    (tmp_path / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png does not exist"):
        records.take(np.arange(5), CPU)


def test_a_configuration_is_named_in_full_by_the_anchors_identity() -> None:
    assert "initial_seed=3" in repr(replace(tiny_model().config, initial_seed=3))
    assert isinstance(tiny_model().config, PromptConfig)
