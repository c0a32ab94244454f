"""A real PostgreSQL for the tests that need one, on a free port in a temporary folder.

    with postgres() as server:                  skips, or fails where CI is set, without PostgreSQL
        server.database("orders")               the conninfo of a new, empty database
        server.spool("orders")                  the URL of a spool there
        server.stop(SIGQUIT); server.start()    it crashes, and comes back

    @pytest.fixture(scope="module")
    def server():
        with postgres() as server:
            yield server

PostgreSQL refuses to run as root, so there it runs as `postgres`, or else as `nobody`. It listens
on loopback alone, trusts everybody there, and does not wait for the disk (`fsync=off`) unless asked
to. Whatever becomes of the tests, it ends with them.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from ports import free_port

from .process import end, missing, started, stop, until

PLACES: Final = "/usr/lib/postgresql"
"""Where Debian keeps its versions."""
START_S: Final = 60
FAST: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def program(name: str) -> str | None:
    """`initdb` or `postgres`, of the newest version that is there."""
    versions = sorted(Path(PLACES).glob("*/bin"), key=lambda bin_: int(bin_.parent.name))
    places = [str(bin_) for bin_ in reversed(versions)]
    return shutil.which(name, path=":".join([*places, os.environ.get("PATH", "")]))


def account() -> pwd.struct_passwd | None:
    """As whom to run it; None: as ourselves."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("there is nobody whom PostgreSQL could run as")


class Postgres:
    """A server, its folder, and whoever it runs as."""

    def __init__(self, port: int, user: str, folder: Path, who: pwd.struct_passwd | None) -> None:
        self.port: Final = port
        self.user: Final = user
        self.folder: Final = folder
        self.data: Final = folder / "data"
        self.who: Final = who
        self.settings: dict[str, str] = {
            "port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
            "max_connections": "200", "shared_buffers": "16MB",
        }  # fmt: skip
        self.made: Final[set[str]] = set()
        """The databases that `database` made."""
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            run_as(self.who, [_need(name), *arguments]),
            capture_output=True, text=True, check=False, cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def make(self) -> None:
        """Its data, new and empty."""
        self.command(
            "initdb", "-D", str(self.data), "-A", "trust", "-U", self.user, "-E", "UTF8",
            "--no-locale", "--no-sync",
        )  # fmt: skip

    def start(self, *, wait: bool = True) -> None:
        options = [f"--{name}={value}" for name, value in self.settings.items()]
        self.process = started(
            run_as(self.who, [_need("postgres"), "-D", str(self.data), *options]),
            log=self.folder / "log", cwd=self.folder,
            dies_by=signal.SIGQUIT if self.who is None else None,
        )  # fmt: skip
        if wait:
            _until_it_answers(self, self.process, self.folder / "log")

    def pids(self) -> list[int]:
        """Its processes, the one that starts all others first. One that has lost its disk may have
        ended by itself, and all others end with it."""
        assert self.process is not None
        first = self.process.pid
        children = ""
        with suppress(FileNotFoundError):
            children = Path(f"/proc/{first}/task/{first}/children").read_text()
        return [first, *map(int, children.split())]

    def kill(self) -> None:
        """kill -9 of all of it, gone when this returns: as in a power cut, nobody tidies up."""
        assert self.process is not None
        stop(self.process.pid)  # it starts no other
        self._each(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def pause(self) -> None:
        """It takes connections and never answers."""
        assert self.process is not None
        stop(self.process.pid)  # it starts no other
        stop(*self.pids())

    def resume(self) -> None:
        self._each(signal.SIGCONT)

    def _each(self, number: int) -> None:
        for pid in reversed(self.pids()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, signal_: int = signal.SIGINT) -> None:
        """SIGINT: sessions are ended. SIGQUIT: as if it had crashed; it recovers at the start."""
        if self.process is None:
            return
        end(self.process, signal_)
        self.process = None

    def conninfo(self, database: str = "postgres") -> str:
        return f"host=127.0.0.1 port={self.port} user={self.user} dbname={database}"

    def url(self, database: str = "postgres", *, driver: str = "postgresql+psycopg") -> str:
        """For SQLAlchemy."""
        return f"{driver}://{self.user}@127.0.0.1:{self.port}/{database}"

    def spool(self, schema: str = "unspool", *, port: int = 0, **options: object) -> str:
        """The URL of the spool in this schema: what `--spool` takes."""
        query = "".join(f"&{name}={value}" for name, value in options.items())
        where = f"{self.user}@127.0.0.1:{port or self.port}"
        return f"postgres://{where}/postgres?schema={schema}{query}"

    def execute(self, statement: str, *values: object, database: str = "postgres") -> list[Any]:
        """One statement, as whoever may do everything; its rows, where it has some."""
        import psycopg

        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def flushed(self) -> int:
        """How many bytes of its log are on the disk by now."""
        [[bytes_]] = self.execute("SELECT pg_current_wal_flush_lsn() - '0/0'")
        return int(bytes_)

    def database(self, name: str) -> str:
        """The conninfo of a database that is new and empty."""
        import psycopg

        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        self.made.add(name)
        return self.conninfo(name)


def _need(name: str) -> str:
    found = program(name)
    if found is None:
        missing("PostgreSQL", "apt-get install postgresql")
    return found


def run_as(who: pwd.struct_passwd | None, command: Sequence[str]) -> list[str]:
    if who is None:
        return [*command]
    ids = [f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups"]
    # setpriv forgets a parent-death signal that was set before it: it sets its own
    return ["setpriv", *ids, "--pdeathsig=QUIT", *command]


@contextmanager
def postgres(
    *,
    durable: bool = False,
    settings: dict[str, str] | None = None,
    within: Path | None = None,
    synced: bool = False,
) -> Iterator[Postgres]:
    """A server for as long as the block lasts. `durable`: commits wait for the disk. `within`: a
    folder of its own to keep its data in. `synced`: all that it begins with is on the disk."""
    who = account()
    # Not below pytest's folders, which are closed to everybody but their owner.
    folder = Path(tempfile.mkdtemp(prefix="unspool-postgres-", dir=within))
    server = Postgres(free_port(), "unspool", folder, who)
    try:
        if who is not None:
            os.chown(folder, who.pw_uid, who.pw_gid)
        server.settings.update({**({} if durable else FAST), **(settings or {})})
        server.make()
        server.start()
        if synced:
            os.sync()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder into which whoever runs the server may go; pytest's are closed."""
    with tempfile.TemporaryDirectory(
        prefix="unspool-postgres-", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def standby_of(server: Postgres, *, settings: dict[str, str] | None = None) -> Iterator[Postgres]:
    """A server that follows this one, under the name `standby`."""
    folder = Path(tempfile.mkdtemp(prefix="unspool-standby-"))
    standby = Postgres(free_port(), server.user, folder, server.who)
    try:
        if server.who is not None:
            os.chown(folder, server.who.pw_uid, server.who.pw_gid)
        standby.settings.update(FAST | (settings or {}))
        standby.command(
            "pg_basebackup", "-D", str(standby.data), "-R", "-c", "fast",
            "-d", f"{server.conninfo()} application_name=standby",
        )  # fmt: skip
        standby.start()
        yield standby
    finally:
        standby.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _until_it_answers(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    def answers() -> bool:
        psycopg.connect(server.conninfo(), connect_timeout=30).close()
        return True

    until(answers, process, within_s=START_S, log=log, trouble=(psycopg.OperationalError,))
