"""A real PgBouncer before a PostgreSQL of the tests, pooling transactions.

with pgbouncer(server, sessions=2) as port:      server.spool("orders", port=port)
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports import free_port

from .postgres import Postgres, run_as
from .process import end, missing, started, until


@contextmanager
def pgbouncer(server: Postgres, *, sessions: int = 2) -> Iterator[int]:
    """Its port. However many come, they share so many of the server's sessions."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        missing("PgBouncer", "apt-get install pgbouncer")
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
        process = started(run_as(server.who, [program, str(folder / "ini")]), cwd=folder)
        try:
            until(lambda: _listens(port), process, within_s=60)
            yield port
        finally:
            end(process, signal.SIGTERM)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _listens(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), timeout=30).close()
    return True
