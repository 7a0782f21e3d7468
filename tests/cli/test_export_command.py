"""export: what is written runs in a process that has neither fedmvp nor open_clip, and says what it is."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fedmvp.cli import export
from fedmvp.cli.predict import model_of
from fedmvp.data.images import decode_images
from fedmvp.errors import ExitCode, UserError
from fedmvp.model.export import ExportedModel
from fedmvp.model.inference import Predictor
from fedmvp.study.policy import parse_policy
from fedmvp.study.prompts import CLAIM, read_prompts, write_prompts
from fedmvp.study.storage import whole_folder
from privacy.claim import parse_claim
from tests.cli.conftest import PROMPTS_POLICY, make_prompts, picture
from tests.cli.test_terms_of_epsilon import check_text
from tests.docs.documents import ROOT
from tests.model.tiny import tiny_backbone

OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

WITHOUT_US = """\
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"fedmvp", "privacy", "secure_agg", "open_clip", "opacus", "timm", "torchvision"}:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Absent())
"""
"""Makes every import of ours, and of the library that built the backbone, fail."""


def blocks(text: str) -> list[str]:
    """The blocks of Python in a document, by fence or by indentation."""
    fenced = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    unfenced = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = re.findall(r"(?:^    .*\n|^\n(?=    ))+", unfenced, re.MULTILINE)
    return fenced + [textwrap.dedent(block).strip() + "\n" for block in indented]


def block_with(text: str, *words: str) -> str:
    (found,) = (block for block in blocks(text) if all(word in block for word in words))
    return found


@dataclass(frozen=True)
class Made:
    """An exported module that no test changes, its prompts, and what the person was told."""

    folder: Path
    prompts: Path
    out: str
    told: str


@pytest.fixture(scope="module")
def module(tmp_path_factory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("exported")
    out, told = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        prompts = make_prompts(folder, patch)
        with redirect_stdout(out), redirect_stderr(told):
            export.export_prompts(prompts, folder / "module", checkpoint=None, style="text")
        yield Made(folder / "module", prompts, out.getvalue(), told.getvalue())


def in_a_fresh_process(folder: Path, program: str) -> str:
    command = [sys.executable, "-I", "-c", WITHOUT_US + program]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def models_own_logits(prompts: Path, paths: list[Path]) -> torch.Tensor:
    model = model_of(read_prompts(prompts), prompts, checkpoint=None)
    predictor = Predictor(model)
    return predictor.logits(predictor.feature(predictor.read(decode_images(paths, model.backbone.image_size))))


LOADERS = {
    "the archive, as docs/operations.md says": (OPERATIONS, ("torch.export.load",)),
    "the tensors, as docs/operations.md says": (OPERATIONS, ("safetensors.safe_open", "logits_of")),
    "the archive, as the README beside it says": (None, ("torch.export.load",)),
    "the tensors, as the README beside it says": (None, ("safetensors.safe_open", "logits_of")),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_documented_loader_gives_the_models_logits_where_nothing_of_ours_is_installed(module, tmp_path, name):
    document, words = LOADERS[name]
    readme = (module.folder / "README.md").read_text(encoding="utf-8")
    loader = block_with(document or readme, *words)
    paths = [picture(tmp_path / f"{number}.png", (70 * number, 90, 10)) for number in range(3)]
    printed = in_a_fresh_process(
        module.folder,
        f"{block_with(readme, 'ImageOps')}\n{loader}\n"
        f"images = torch.cat([read(path) for path in {[str(path) for path in paths]!r}])\n"
        "alone = logits_of(images[:1])\n"
        "assert not logits_of(images).requires_grad\n"
        "import json\nprint(json.dumps([logits_of(images).tolist(), alone.tolist()]))\n",
    )
    together, alone = map(torch.tensor, json.loads(printed))
    expected = models_own_logits(module.prompts, paths)
    assert expected.std(dim=0).min() > 0.01
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(alone, expected[:1], atol=1e-4, rtol=0)


def test_in_that_process_an_import_of_ours_does_fail(module):
    for name in ("fedmvp", "open_clip", "privacy.claim"):
        answer = in_a_fresh_process(
            module.folder, f"try:\n    import {name}\nexcept ImportError as no:\n    print(no)\n"
        )
        assert answer == f"{name.split('.')[0]} is not installed\n"


def test_the_loader_for_the_tensors_is_ten_lines():
    assert len(block_with(OPERATIONS, "safetensors.safe_open", "logits_of").splitlines()) == 10


def metadata_of(folder: Path) -> dict[str, dict[str, str]]:
    """What is said beside the numbers, in each of both files."""
    extra = dict.fromkeys(("format", "stamp", CLAIM, "policy", "round", "description"), "")
    torch.export.load(folder / "model.pt2", extra_files=extra)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {"archive": extra, "tensors": file.metadata()}


def test_each_file_carries_claim_stamp_policy_and_description(module):
    source = read_prompts(module.prompts)
    for name, said in metadata_of(module.folder).items():
        assert parse_claim(said[CLAIM]) == source.claim, name
        assert (said["stamp"], said["round"], said["format"]) == ("record-local", "3", "fedmvp-module-v1"), name
        assert said["policy"].encode() == source.policy.document, name
        assert json.loads(said["description"])["classes"] == ["cat", "dog"], name


def test_the_description_names_classes_preprocessing_backbone_claim_and_the_hash_of_every_file(module):
    folder = module.folder
    described = json.loads((folder / "module.json").read_text(encoding="utf-8"))
    assert described["classes"] == ["cat", "dog"]
    assert described["input"]["shape"] == ["batch", 3, 16, 16]
    assert "bicubic" in described["input"]["preprocessing"]
    assert described["backbone"]["state_sha256"] == tiny_backbone().state_hash()
    assert described["claim"] == read_prompts(module.prompts).claim.line
    assert described["policy_sha256"] == hashlib.sha256(PROMPTS_POLICY.document).hexdigest()
    assert set(described["files"]) == {"model.pt2", "model.safetensors"}
    for name, facts in described["files"].items():
        content = (folder / name).read_bytes()
        assert (facts["bytes"], facts["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert {path.name for path in folder.iterdir()} == {*described["files"], "module.json", "README.md"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())


def test_the_person_is_told_what_is_in_it_how_large_it_is_and_whose_licence_it_has(module):
    folder, told = module.folder, module.told
    assert module.out == f"{folder}\n"
    size = (folder / "model.safetensors").stat().st_size / 1e6
    assert f"{folder / 'model.safetensors'}: {size:,.1f} MB" in told
    assert "the frozen vision tower of fedmvp-tiny (embedded), under its publisher's licence" in told
    assert "no text tower, no image, no key" in told
    check_text(told)
    assert "claim: epsilon " in told
    readme = (folder / "README.md").read_text(encoding="utf-8")
    check_text(readme)
    assert "under its publisher's licence" in readme
    assert "UNSAFE" not in readme


def test_a_module_trained_without_privacy_says_so_everywhere(run, prompts, tmp_path):
    text = PROMPTS_POLICY.document.decode().replace('mode = "record-local" ', 'mode = "UNSAFE-no-dp" ')
    unsafe = parse_policy(text.replace("epsilon_max = 8.0", "epsilon_max = inf").encode())
    write_prompts(prompts, read_prompts(prompts).parameters, unsafe, round_number=1)
    folder = tmp_path / "module"
    result = run("fedmvp-client", "export", "--prompts", prompts, "--out", folder, "--format", "json")
    assert result.code == 0, result.err
    assert "warning: these prompts are stamped UNSAFE-no-dp" in result.err
    assert json.loads(result.out)["stamp"] == "UNSAFE-no-dp"
    assert json.loads(result.out)["folder"] == str(folder)
    assert "**UNSAFE-no-dp: trained without differential privacy.**" in (folder / "README.md").read_text()
    for said in metadata_of(folder).values():
        assert said["stamp"] == "UNSAFE-no-dp"
        assert parse_claim(said[CLAIM]).is_unsafe


def test_either_program_exports_the_same_into_an_empty_folder_or_a_new_one(run, module, tmp_path):
    (tmp_path / "empty").mkdir()
    for program, folder in (("fedmvp-server", tmp_path / "new"), ("fedmvp-client", tmp_path / "empty")):
        result = run(program, "export", "--prompts", module.prompts, "--out", folder)
        assert (result.code, result.out) == (0, f"{folder}\n"), result.err
        assert metadata_of(folder)["tensors"] == metadata_of(module.folder)["tensors"]


def test_a_folder_that_holds_something_is_refused_and_left_alone(run, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "export_model", None)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    result = run("fedmvp-client", "export", "--prompts", prompts, "--out", folder)
    assert result.code == ExitCode.CONFIG
    assert "exists and is not empty" in result.err
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "failure", [RuntimeError("file write failed"), KeyboardInterrupt(), OSError(28, "No space left")]
)
def test_an_export_that_fails_half_way_leaves_nothing(run, prompts, tmp_path, monkeypatch, failure):
    def fail(*_arguments, **_options):
        assert [path for path in tmp_path.iterdir() if path.name.startswith(".module.new-")]  # it was under way
        raise failure

    monkeypatch.setattr(export, "export_model", lambda _model: ExportedModel(None, [], {}))
    monkeypatch.setattr(torch.export, "save", lambda _archive, path, **_options: Path(path).write_bytes(b"half"))
    monkeypatch.setattr(export, "save_file", fail)
    before = set(tmp_path.iterdir())
    result = run("fedmvp-client", "export", "--prompts", prompts, "--out", tmp_path / "module")
    assert result.code not in {0, ExitCode.INTERNAL}
    assert result.out == ""
    assert set(tmp_path.iterdir()) == before


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "module"

    def fill():
        with whole_folder(target) as staged:
            (staged / "ours.txt").write_text("ours")
            target.mkdir()
            (target / "theirs.txt").write_text("theirs")

    with pytest.raises(UserError, match="cannot be written"):
        fill()
    assert [path.name for path in target.iterdir()] == ["theirs.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["module"]


@pytest.mark.parametrize("content", [b"hello", None])
def test_what_is_no_prompts_file_is_refused_and_leaves_no_folder(run, tmp_path, content):
    path = tmp_path / "prompts.safetensors"
    if content is not None:
        path.write_bytes(content)
    result = run("fedmvp-client", "export", "--prompts", path, "--out", tmp_path / "module")
    assert result.code == ExitCode.CONFIG
    assert str(path) in result.err
    assert not (tmp_path / "module").exists()
