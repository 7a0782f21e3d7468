"""The package can be read on its own: it imports the standard library, numpy and cryptography, and nothing else."""

import ast
import sys
from pathlib import Path

import pytest

import secure_agg

FILES = sorted(Path(secure_agg.__file__).parent.rglob("*.py"))
ALLOWED = {"secure_agg", "numpy", "cryptography"} | sys.stdlib_module_names
# Neither of these belongs into a package without sockets, clocks or a random generator of its own.
UNWANTED = {"socket", "ssl", "time", "datetime", "random", "asyncio", "subprocess", "pickle", "ctypes", "importlib"}


def imported(source):
    """Every top-level package that a module names in an import, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("a relative import" if node.level else node.module.split(".")[0])
        elif isinstance(node, ast.Name) and node.id in {"__import__", "exec", "eval"}:
            found.add(node.id)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_module_imports_the_standard_library_numpy_and_cryptography_alone(path):
    assert imported(path.read_text()) <= ALLOWED - UNWANTED


def test_the_whole_package_was_looked_at():
    assert {"client.py", "server.py", "masks.py", "release.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "import numpy, torch.nn",
        "from fedmvp.errors import Problem",
        "def late():\n    import grpc",
        "if True:\n    from pydantic import BaseModel",
        "from . import client",
        "x = __import__('torch')",
        "import random",
        "from time import time",
    ],
)
def test_any_other_import_fails_the_same_check(source):
    assert not imported(source) <= ALLOWED - UNWANTED
