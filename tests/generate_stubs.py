"""Make phaul/rpc from proto/. `make proto` writes it; tests/unit/test_stubs.py fails when what is committed differs.

protoc derives the imports inside the stubs from the paths of the .proto files, so each file is compiled under the
path that its stub shall have below the repository's root.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"phaul/v1": "phaul/rpc/v1", "criu": "phaul/rpc/criu"}  # below proto/ : below the root


def generate(destination: Path) -> None:
    """Write the stubs of every .proto file below `destination`/phaul/rpc."""
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        files: list[str] = []
        for source_package, stub_package in PACKAGES.items():
            (staged / stub_package).mkdir(parents=True)
            (destination / stub_package).mkdir(parents=True, exist_ok=True)
            (destination / stub_package / "__init__.py").write_text("")
            for proto in sorted((ROOT / "proto" / source_package).glob("*.proto")):
                text = proto.read_text().replace(f'import "{source_package}/', f'import "{stub_package}/')
                (staged / stub_package / proto.name).write_text(text)
                files.append(f"{stub_package}/{proto.name}")
        plugins = Path(sys.executable).parent
        well_known = str(resources.files("grpc_tools") / "_proto")
        options = [
            "protoc",
            f"-I{staged}",
            f"-I{well_known}",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={destination}",
            f"--mypy_out=quiet:{destination}",
        ]
        services = [file for file in files if file.endswith(("/agent.proto", "/peer.proto"))]
        for arguments in (
            files,
            [f"--grpc_python_out={destination}", f"--mypy_grpc_out=quiet:{destination}", *services],
        ):
            if protoc.main([*options, *arguments]) != 0:
                raise SystemExit("protoc failed")
    (destination / "phaul/rpc/__init__.py").write_text(
        '"""Generated from proto/ by `make proto`. Not edited by hand."""\n'
    )


if __name__ == "__main__":
    shutil.rmtree(ROOT / "phaul/rpc", ignore_errors=True)
    generate(ROOT)
