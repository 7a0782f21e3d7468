"""The committed generated code is what protos/ generates."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("grpc_tools")

from tools.generate_protos import difference, generate


def test_the_committed_code_is_what_the_protos_generate(tmp_path: Path) -> None:
    assert difference(generate(tmp_path)) == []


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    files = generate(tmp_path)
    files["secure_sum_pb2.py"] += "#"

    assert difference(files) == ["secure_sum_pb2.py"]
