"""This package can be used, and read, without the rest: it imports no federation, no network and no model."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import privacy

FOREIGN = {"fedmvp", "secure_agg", "grpc", "open_clip"}


def imported(file: Path) -> Iterator[str]:
    """The top-level package of every import of a file, inside functions too, and of those made by name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            yield ast.unparse(node.args[0]).strip("'\"").partition(".")[0]


def check_imports(folder: Path) -> int:
    files = sorted(folder.rglob("*.py"))
    for file in files:
        assert not FOREIGN & set(imported(file)), f"{file.name} imports what privacy must not know"
    return len(files)


def test_privacy_imports_nothing_of_the_federation_the_network_or_the_model() -> None:
    assert check_imports(Path(privacy.__file__).parent) > 15


@pytest.mark.parametrize(
    "line",
    [
        "import fedmvp",
        "from secure_agg.ring import Ring",
        "def late():\n    import grpc.aio",
        "import importlib\nimportlib.import_module('open_clip.model')",
    ],
)
def test_control_one_such_import_anywhere_fails_the_same_check(tmp_path: Path, line: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.py").write_text(f"import math\n{line}\n")
    with pytest.raises(AssertionError, match="must not know"):
        check_imports(tmp_path)
