"""Runs the programs in this process and hands back exit code, stdout and stderr."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from PIL import Image

from fedmvp.cli.client import client
from fedmvp.cli.experiment import experiment
from fedmvp.cli.program import run_program
from fedmvp.cli.server import server
from fedmvp.model import from_policy, parameters
from fedmvp.study.policy import parse_policy
from fedmvp.study.prompts import write_prompts
from fedmvp.study.templates import policy_template
from fedmvp.study.workshop import Study, create_study
from tests.model.tiny import disturb, tiny_backbone
from tests.study.conftest import copy_study, site_options

PROGRAMS = {"fedmvp-server": server, "fedmvp-client": client, "fedmvp-experiment": experiment}

PROMPTS_POLICY = parse_policy(
    policy_template("run-1").replace("n_prompts = 16", "n_prompts = 4").replace("n_heads = 4", "n_heads = 2").encode()
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """run("fedmvp-client", "check", ...) -> Result; keyword arguments are environment variables."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def invoke(program: str, *arguments: object, **environment: str) -> Result:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            run_program(PROGRAMS[program], program, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = int(ended.value.code or 0)
        return Result(code, captured.out, captured.err)

    yield invoke
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def pristine_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    return create_study(folder / "study", policy_template("run-1"), sites=site_options(folder))


@pytest.fixture
def study(pristine_study: Study, tmp_path: Path) -> Study:
    return copy_study(pristine_study, tmp_path / "study")


@dataclass(frozen=True)
class Site:
    """A joined site with images and a ledger: everything a check asks for, but no server."""

    config: Path
    folder: Path
    data: Path

    def edit(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new))


@pytest.fixture
def site(study: Study, tmp_path: Path, run: Run) -> Site:
    config = study.site_configs["site-1"]
    made = Site(config, config.parent, tmp_path / "images")
    made.edit(config.read_text().split("path = ")[1].split("\n")[0], f'"{made.data}"')
    for number, name in enumerate(("cat", "dog")):
        (made.data / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (60 * number, 90, 120)).save(made.data / name / "1.png")
    assert run("fedmvp-client", "ledger", "--config", config, "create").code == 0
    return made


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prompts file for a tiny random backbone in the place of the one that the policy names."""
    return make_prompts(tmp_path, monkeypatch)


def make_prompts(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    patch.setattr(from_policy, "load_backbone", lambda _spec, **_options: tiny_backbone())
    model = from_policy.build_prompted_model(PROMPTS_POLICY)
    disturb(model)
    path = folder / "prompts.safetensors"
    write_prompts(path, parameters.get_vector(model), PROMPTS_POLICY, round_number=3)
    return path


def picture(path: Path, colour: tuple[int, int, int] = (200, 30, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 18), colour).save(path)
    return path
