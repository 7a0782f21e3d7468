"""Regenerate fedmvp/rpc/v1 from protos/: `python -m tools.generate_protos`, or `--check` to compare and change nothing.

protoc names imports after the path of the .proto file (`fedmvp.v1`), while the generated modules live in
`fedmvp.rpc.v1`; the one rewriting done here is that prefix.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUTPUT = ROOT / "fedmvp" / "rpc" / "v1"
PACKAGE_DOCSTRING = '"""Generated from protos/fedmvp/v1 by tools/generate_protos.py; do not edit."""\n'


def generate(folder: Path) -> dict[str, str]:
    """Run protoc into `folder`; return the finished text by file name."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    plugins = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={resources.files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--python_out={folder}",
        f"--grpc_python_out={folder}",
        f"--mypy_out=quiet:{folder}",
        f"--mypy_grpc_out=quiet:{folder}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        message = "protoc failed; its message is above"
        raise SystemExit(message)
    files = {"__init__.py": PACKAGE_DOCSTRING}
    for path in sorted(folder.rglob("*_pb2*")):
        text = path.read_text(encoding="utf-8")
        if path.name.endswith(("_pb2_grpc.py", "_pb2_grpc.pyi")) and "Servicer" not in text:
            continue  # a file without a service has nothing to say about gRPC
        files[path.name] = text.replace("from fedmvp.v1 import", "from fedmvp.rpc.v1 import")
    return files


def difference(files: dict[str, str]) -> list[str]:
    """Names of the files that are missing, stale or left over in fedmvp/rpc/v1."""
    present = {path.name: path.read_text(encoding="utf-8") for path in OUTPUT.glob("*.py*")}
    return sorted(name for name in files.keys() | present.keys() if files.get(name) != present.get(name))


def main() -> int:
    """Write the generated files, or with --check report the difference; 1 when --check finds one."""
    parser = argparse.ArgumentParser(description="regenerate fedmvp/rpc/v1 from protos/")
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        files = generate(Path(folder))
    stale = difference(files)
    if check:
        for name in stale:
            sys.stderr.write(f"{name} differs from what protos/ generates; run python -m tools.generate_protos\n")
        return 1 if stale else 0
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in stale:
        path = OUTPUT / name
        if name in files:
            path.write_text(files[name], encoding="utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
