from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from fedmvp.model import torchvision_shim


def test_torchvision_imports_in_a_fresh_process_with_warnings_as_errors() -> None:
    program = (
        "from fedmvp.model.torchvision_shim import import_torchvision as repair; repair(); repair()\n"
        "import torch, torchvision\n"
        "assert torch.ops.torchvision.nms is not None\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_failure_of_torchvision_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(f"{name} is broken in a new way")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="in a new way"):
        torchvision_shim.import_torchvision()


def test_nothing_is_declared_where_torchvision_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    before = list(torchvision_shim._declared)
    torchvision_shim.import_torchvision()
    assert torchvision_shim._declared == before
