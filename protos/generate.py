"""Makes authz_service/pb from the .proto files here: stubs, their types, a descriptor set.

    python protos/generate.py           writes authz_service/pb anew
    python protos/generate.py --check   writes nothing; fails if the committed files differ

Needs the packages of the dependency group ``tools``; no network.
"""

import argparse
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

from google.rpc import status_pb2
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
PB = PROTOS.parent / "authz_service" / "pb"
DESCRIPTORS = "descriptors.binpb"
INIT = '"""Generated from protos/ by protos/generate.py; never edited."""\n'


def sources() -> list[str]:
    """The paths of our own .proto files as imports name them, in byte order."""
    return sorted(str(path.relative_to(PROTOS).as_posix()) for path in PROTOS.rglob("*.proto"))


def compile_protos(*outputs: str) -> None:
    """Runs protoc over all our files with these output options.

    Raises:
        SystemExit: protoc found an error, which it has printed.
    """
    includes = [
        PROTOS,
        Path(status_pb2.__file__).parents[2],  # google/api, google/rpc
        Path(str(files("grpc_tools"))) / "_proto",  # google/protobuf
    ]
    code = protoc.main(["protoc", *(f"-I{path}" for path in includes), *outputs, *sources()])
    if code:
        raise SystemExit(code)


def write_descriptors(path: Path) -> None:
    """Writes all our files and what they import, comments included, as a FileDescriptorSet."""
    compile_protos("--include_imports", "--include_source_info", f"--descriptor_set_out={path}")


def generate(target: Path) -> None:
    """Writes the whole package into an empty or absent folder."""
    target.mkdir(parents=True, exist_ok=True)
    # protoc finds the mypy plugins beside the interpreter that runs this script.
    os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
    compile_protos(
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
    )
    for path in target.rglob("*_pb2_grpc.py"):
        if "Stub(" not in path.read_text(encoding="utf-8"):  # a file without a service
            path.unlink()
            path.with_suffix(".pyi").unlink()
    for path in [*target.rglob("*.py"), *target.rglob("*.pyi")]:
        text = path.read_text(encoding="utf-8")
        # The generators know proto packages only; ours live below authz_service.pb.
        text = re.sub(r"^(from|import) authz\b", r"\1 authz_service.pb.authz", text, flags=re.M)
        path.write_text(text, encoding="utf-8")
    for folder in {target, *(path.parent for path in target.rglob("*.py"))}:
        for package in (folder, *folder.parents):
            if package.is_relative_to(target):
                (package / "__init__.py").write_text(INIT, encoding="utf-8")
    write_descriptors(target / DESCRIPTORS)


def contents(folder: Path) -> dict[str, bytes]:
    """Every generated file of the folder by its path below it."""
    return {
        str(path.relative_to(folder).as_posix()): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


def stale() -> list[str]:
    """The files of authz_service/pb that are missing, left over or differ from a new generation."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "pb")
        fresh, committed = contents(Path(folder) / "pb"), contents(PB)
    return sorted(
        name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only; write nothing")
    if parser.parse_args().check:
        if names := stale():
            sys.exit("authz_service/pb is not fresh, run `make protos`: " + ", ".join(names))
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "pb")
        # Only a complete generation takes the place of the last one.
        shutil.rmtree(PB, ignore_errors=True)
        shutil.copytree(Path(folder) / "pb", PB)


if __name__ == "__main__":
    main()
