"""A real PgBouncer before a PostgreSQL of the tests, pooling transactions.

with pgbouncer(server, sessions=2) as port:      server.spool("orders", port=port)
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ports import free_port
from servers.postgres import Postgres, run_as


@contextmanager
def pgbouncer(server: Postgres, *, sessions: int = 2) -> Iterator[int]:
    """Its port. However many come, they share so many of the server's sessions."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        assert not os.environ.get("CI"), "PgBouncer is missing, and CI promises it"
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="unspool-pgbouncer-"))
    try:
        (folder / "users").write_text(f'"{server.user}" ""\n')
        (folder / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {folder}/users\npool_mode = transaction\n"
            f"default_pool_size = {sessions}\nmax_client_conn = 100\nlogfile = {folder}/log\n"
        )
        if server.who is not None:
            for path in (folder, *folder.iterdir()):
                os.chown(path, server.who.pw_uid, server.who.pw_gid)
        process = subprocess.Popen(
            run_as(server.who, [program, str(folder / "ini")]), cwd=folder, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _until_it_listens(port, folder)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _until_it_listens(port: int, folder: Path) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.02)
    raise AssertionError((folder / "log").read_text())
