"""Programs out of Debian's packages, unpacked below ``var/`` and not installed.

Python has no wheel of Redis 7, and Debian does. The machine's own apt brings the packages, from
where it is set up to look, and checks them against the signature of the archive; needing neither
root nor a package list that somebody made before, it works on a new machine as well.
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from authz_service.stack.server import StackError
from authz_service.stack.valkey import Program

_KEPT = Path(__file__).parents[2] / "var" / "servers"
_REDIS_VERSION = "7.0.15"
# The archive keeps one revision of a version, that with the latest fixes: it cannot be pinned.
_REDIS_PACKAGES = [f"redis-{part}=5:{_REDIS_VERSION}-*" for part in ("server", "tools")]
_REDIS_LIBRARIES = ["libatomic1", "libjemalloc2", "liblzf1"]
_SECONDS = 100


def redis_7() -> Program:
    """Returns the Redis 7 that is installed on this machine, or that of the packages."""
    installed = shutil.which("redis-server")
    if installed is not None:
        program = Program("Redis", Path(installed))
        if _version(program).startswith("7."):
            return program
    return packaged_redis_7()


def packaged_redis_7() -> Program:
    """Returns the Redis 7 of the packages, which are fetched once.

    Raises:
        StackError: There is none to be had; the text tells what was tried.
    """
    folder = _unpacked(f"redis-{_REDIS_VERSION}", [*_REDIS_PACKAGES, *_REDIS_LIBRARIES])
    libraries = next(iter(folder.glob("usr/lib/*-linux-gnu")), None)
    program = Program("Redis", folder / "usr" / "bin" / "redis-server", libraries)
    if _version(program) != _REDIS_VERSION:
        raise StackError(f"{program.path} is not Redis {_REDIS_VERSION}")
    return program


def _unpacked(name: str, packages: Sequence[str]) -> Path:
    """Returns a folder with the files of some packages, at their places below ``/``."""
    _KEPT.mkdir(parents=True, exist_ok=True)
    folder = _KEPT / name
    with open(_KEPT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other test worker may need it at the same moment
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=_KEPT) as temporary:
                _download(packages, Path(temporary))
                for package in Path(temporary).glob("*.deb"):
                    _run(["dpkg-deb", "--extract", str(package), f"{temporary}/files"], _KEPT)
                os.rename(f"{temporary}/files", folder)
    return folder


def _download(packages: Sequence[str], folder: Path) -> None:
    """Puts packages into a folder."""
    lists = folder / "lists"
    lists.joinpath("partial").mkdir(parents=True)
    get = ["apt-get", "--quiet", "--quiet"]
    # Lists of our own: the machine's may be absent or name what is no longer there.
    get += ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder / 'cache'}"]
    _run([*get, "update"], folder)
    _run([*get, "download", *packages], folder)


def _version(program: Program) -> str:
    environment = {"LC_ALL": "C"}
    if program.libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(program.libraries)
    found = re.search(r"\bv=(\S+)", _run([str(program.path), "--version"], "/", environment))
    return found[1] if found else ""


def _run(command: list[str], folder: str | Path, environment: dict[str, str] | None = None) -> str:
    """Returns what a program prints."""
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=_SECONDS,
        ).stdout
    except subprocess.CalledProcessError as error:
        raise StackError(f"no Redis 7: {command[0]} failed: {error.stdout.strip()}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"no Redis 7: {error}") from None
