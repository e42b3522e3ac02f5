"""Judges the .proto files with buf: style and comments, and changes that break released clients.

    python protos/lint.py             lints, and compares with the last release
    python protos/lint.py --release   makes the present files the release to compare with

The rules are those of buf.yaml. The last release is protos/released.binpb, an image without
comments; it is rewritten when a release is made and at no other time. Needs the packages of the
dependency group ``tools``; no network.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from generate import DESCRIPTORS, PROTOS, compile_protos, write_descriptors

BUF = Path(sysconfig.get_path("scripts")) / "buf"
RELEASED = PROTOS / "released.binpb"
# Only our own files: those below google/ are in the image too and follow other rules.
OURS = ("--config", str(PROTOS.parent / "buf.yaml"), "--path", "authz")


def buf(*arguments: str) -> str:
    """Runs buf and returns what it objects to, empty if nothing.

    Raises:
        RuntimeError: buf could not do its work.
    """
    done = subprocess.run([str(BUF), *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode not in (0, 100):  # 100: it did, and has objections
        raise RuntimeError(done.stderr or f"buf ended with {done.returncode}")
    return done.stdout


def style_problems(image: Path) -> str:
    """What breaks the style rules in an image with comments, one line each."""
    return buf("lint", str(image), *OURS)


def breaking_changes(image: Path, against: Path = RELEASED) -> str:
    """What would break clients of the last release, one line each."""
    return buf("breaking", str(image), "--against", str(against), *OURS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--release", action="store_true", help="write protos/released.binpb")
    if parser.parse_args().release:
        compile_protos("--include_imports", f"--descriptor_set_out={RELEASED}")
        return
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / DESCRIPTORS
        write_descriptors(image)
        problems = style_problems(image) + breaking_changes(image)
    if problems:
        sys.exit(problems.rstrip())


if __name__ == "__main__":
    main()
