"""predict on many files: folders, batches, and files that are no images."""

from __future__ import annotations

import json

import pytest

from fedmvp.cli import predict
from fedmvp.errors import ExitCode
from fedmvp.model.inference import Predictor
from fedmvp.study.policy import parse_policy
from fedmvp.study.prompts import run_claim, write_prompts
from privacy.claim import Claim
from tests.cli.conftest import PROMPTS_POLICY, picture


@pytest.fixture
def scans(tmp_path):
    """Five images below a folder, in two kinds of file and two levels, beside a file that is none."""
    folder = tmp_path / "scans"
    for number, name in enumerate(("a.png", "b.JPG", "deep/c.png", "deep/d.png", "e.png")):
        picture(folder / name, (40 * number, 90, 200 - 30 * number))
    (folder / "notes.txt").write_text("not an image, and not called one")
    return folder


def predicted(run, *arguments):
    result = run("fedmvp-client", "predict", *arguments, "--format", "json")
    return result, json.loads(result.out) if result.out else None


def test_a_folder_stands_for_the_images_below_it_and_one_object_is_printed(run, prompts, scans):
    result, answer = predicted(run, scans, "--prompts", prompts)
    assert result.code == 0, result.err
    assert set(answer) == {"stamp", "round", "claim", "images", "unreadable"}
    names = ["a.png", "b.JPG", "deep/c.png", "deep/d.png", "e.png"]
    assert [item["image"] for item in answer["images"]] == [str(scans / name) for name in names]
    assert answer["claim"].startswith("claim: epsilon ")
    assert answer["claim"] in result.err


def test_files_and_folders_are_answered_in_the_order_given(run, prompts, scans):
    _, answer = predicted(run, scans / "e.png", scans / "deep", scans / "a.png", "--prompts", prompts)
    shown = [item["image"].removeprefix(f"{scans}/") for item in answer["images"]]
    assert shown == ["e.png", "deep/c.png", "deep/d.png", "a.png"]


def test_batches_change_no_answer_and_the_backbone_is_asked_once_a_batch(run, prompts, scans, monkeypatch):
    sizes = []
    read = Predictor.read
    monkeypatch.setattr(Predictor, "read", lambda self, images: [sizes.append(len(images)), read(self, images)][1])
    _, whole = predicted(run, scans, "--prompts", prompts)
    _, parts = predicted(run, scans, "--prompts", prompts, "--batch-size", "2")
    assert sizes == [5, 2, 2, 1]
    for one, other in zip(whole["images"], parts["images"], strict=True):
        assert one["image"] == other["image"]
        assert [c["name"] for c in one["classes"]] == [c["name"] for c in other["classes"]]
        assert [c["probability"] for c in one["classes"]] == pytest.approx(
            [c["probability"] for c in other["classes"]], abs=1e-5
        )
    assert whole["images"][0]["classes"] != whole["images"][4]["classes"]


def test_top_shows_the_likeliest_classes_alone(run, prompts, scans):
    _, everything = predicted(run, scans / "a.png", "--prompts", prompts)
    _, first = predicted(run, scans / "a.png", "--prompts", prompts, "--top", "1")
    assert first["images"][0]["classes"] == everything["images"][0]["classes"][:1]
    assert len(everything["images"][0]["classes"]) == 2


@pytest.mark.parametrize("style", ["json", "text"])
def test_an_image_that_cannot_be_read_is_named_and_the_others_are_answered(run, prompts, scans, style):
    (scans / "b.JPG").write_text("hello")
    missing = scans / "gone.png"
    result = run(
        "fedmvp-client", "predict", scans, missing, "--prompts", prompts, "--batch-size", "2", "--format", style
    )
    assert result.code == ExitCode.CONFIG
    assert "2 of 6 images could not be read" in result.err
    assert f"image {scans / 'b.JPG'} cannot be decoded" in result.err
    assert f"image {missing} does not exist" in result.err
    assert "the other images were classified" in result.err
    if style == "json":
        answer = json.loads(result.out)
        assert len(answer["images"]) == 4
        assert [item["image"] for item in answer["unreadable"]] == [str(scans / "b.JPG"), str(missing)]
        assert "cannot be decoded" in answer["unreadable"][0]["error"]
    else:
        assert str(scans / "e.png") in result.out
        assert str(missing) not in result.out


def test_many_unreadable_images_are_counted_and_the_first_named(run, prompts, tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.png").write_text("hello")
    result, answer = predicted(run, *sorted(tmp_path.glob("*.png")), "--prompts", prompts)
    assert "8 of 8 images could not be read" in result.err
    assert "; and 3 more" in result.err
    assert (answer["images"], len(answer["unreadable"])) == ([], 8)


def test_a_folder_without_images_is_refused_before_anything_is_loaded(run, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "model_of", None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("hello")
    result = run("fedmvp-client", "predict", tmp_path / "empty", "--prompts", prompts)
    assert result.code == ExitCode.CONFIG
    assert f"folder {tmp_path / 'empty'} holds no images" in result.err


def test_text_features_are_kept_where_the_person_says(run, prompts, scans, tmp_path):
    cache = tmp_path / "features"
    _, before = predicted(run, scans / "a.png", "--prompts", prompts)
    for _ in range(2):
        _, answer = predicted(run, scans / "a.png", "--prompts", prompts, "--cache", cache)
        assert answer == before
    assert [path.name.split("-")[0] for path in cache.iterdir()] == ["attributes"]  # and nothing of the image


def test_prompts_of_records_that_were_once_released_without_privacy_are_stamped_so(run, prompts, scans):
    """The policy's own mode is private; the claim of the site's ledger says that its records are not."""
    policy = parse_policy(PROMPTS_POLICY.document)
    sound = run_claim(policy, round_number=3, dimension=10)
    spoiled = Claim(**{**{n: getattr(sound, n) for n in Claim.__slots__}, "epsilon_spent": float("inf"),
                       "epsilon_planned": float("inf")})  # fmt: skip
    write_prompts(prompts, predict.read_prompts(prompts).parameters, policy, round_number=3, claim=spoiled)
    result, answer = predicted(run, scans / "a.png", "--prompts", prompts)
    assert answer["stamp"] == "UNSAFE-no-dp"
    assert "warning: these prompts are stamped UNSAFE-no-dp" in result.err
