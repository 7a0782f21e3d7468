"""A small study on disk: made once, copied for each test, because most tests damage it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedmvp.study.site import SiteOptions
from fedmvp.study.templates import policy_template
from fedmvp.study.workshop import Study, create_study


def site_options(folder: Path, count: int = 3) -> list[SiteOptions]:
    return [
        SiteOptions(f"site-{i}", f"Hospital {i}", folder / "data" / f"site-{i}", dataset_id=f"records-{i}")
        for i in range(1, count + 1)
    ]


def copy_study(study: Study, folder: Path) -> Study:
    """Copy a study, file modes included; nothing in it names its own place."""
    shutil.copytree(study.folder, folder)
    return replace(
        study,
        folder=folder,
        server_config=folder / study.server_config.relative_to(study.folder),
        site_configs={name: folder / path.relative_to(study.folder) for name, path in study.site_configs.items()},
    )


@pytest.fixture(scope="session")
def pristine_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    return create_study(folder / "study", policy_template("run-1"), sites=site_options(folder))


@pytest.fixture(scope="session")
def other_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of another consortium, with the same names; not to be changed."""
    folder = tmp_path_factory.mktemp("other")
    return create_study(folder / "study", policy_template("run-1"), sites=site_options(folder))


@pytest.fixture
def study(pristine_study: Study, tmp_path: Path) -> Study:
    return copy_study(pristine_study, tmp_path / "study")


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """A function that lists a folder's files with their content, to see that nothing changed."""

    def listing(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return listing
