"""Which server, which database, which schema: the spool's URL, read.

    target = read_target("postgres://me:secret@db1,db2/mail?schema=orders&connections=4")
    target.command("psql")       psql -d 'user=me dbname=mail host=db1,db2'

All that libpq knows may stand in the query (sslmode, sslrootcert, target_session_attrs, host …);
ours are `schema` (unspool), `connections` (8) and `deadline_ms` (5000). What the URL leaves out,
libpq takes from its own variables and files: PGPASSWORD, ~/.pgpass, service files.
"""

from __future__ import annotations

import re
import shlex
from typing import Any, Final
from zlib import crc32

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ...core.message import Value
from ...core.urls import concealed
from ...errors import Misconfigured

SCHEMA: Final = "unspool"
CONNECTIONS: Final = 8
DEADLINE_MS: Final = 5_000
OURS: Final = {
    "schema": SCHEMA,
    "connections": str(CONNECTIONS),
    "deadline_ms": str(DEADLINE_MS),
}
DEFAULTS: Final = {
    "connect_timeout": "3",
    "fallback_application_name": "unspool",
    # A host that has gone is noticed in half a minute, and not in two hours.
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
SECRET: Final = frozenset({"password", "sslpassword", "oauth_client_secret"})
_PORTS: Final = re.compile(r"[0-9,]*")
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,39}")


class Target(Value, frozen=True):
    """Where the spool is."""

    shown: str
    """For people: the URL without its password."""
    parameters: dict[str, Any]
    """As libpq has them."""
    schema: str
    connections: int
    deadline_s: float
    """How long a sender may have to wait for it."""

    @property
    def lock_class(self) -> int:
        """Which advisory locks are this spool's: the first of their two numbers."""
        return crc32(b"unspool " + self.schema.encode()) - 2**31

    def command(self, program: str, *, option: str = "-d", **others: str) -> str:
        """One of PostgreSQL's own, asked of this very server, ready for a shell. It finds the
        password where we do, or asks for it. `others`: instead of what the URL says."""
        said = {
            name: value
            for name, value in {**self.parameters, **others}.items()
            if name not in SECRET and DEFAULTS.get(name) != value
        }
        return shlex.join([program, option, make_conninfo(**said)]) if said else program


def read_target(url: str) -> Target:
    """Raises `Misconfigured`."""
    shown = concealed(url)
    base, _, query = url.partition("?")
    ours = dict(OURS)
    theirs: list[str] = []
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        if name in ours:
            ours[name] = value
        else:
            theirs.append(part)
    try:
        parameters = conninfo_to_dict("?".join([base, "&".join(theirs)]) if theirs else base)
    except psycopg.Error as error:
        # What libpq says quotes what it could not read, and that may be the password.
        raise _unreadable(shown) from error
    # A password with a / in it makes a host of the user and a port of itself.
    odd = "@" in str(parameters.get("dbname", "")) or not _PORTS.fullmatch(
        str(parameters.get("port", ""))
    )
    if odd:
        raise _unreadable(shown)
    if not _NAME.fullmatch(ours["schema"]) or ours["schema"].startswith("pg_"):
        raise Misconfigured(
            f"schema={ours['schema']} in {shown!r} is no name that a spool's schema may have."
            " Nothing was opened. Give up to 40 of a-z, 0-9 and _: ?schema=unspool"
        )
    connections = _number(ours, "connections", least=2, most=100, shown=shown)
    deadline_ms = _number(ours, "deadline_ms", least=100, most=60_000, shown=shown)
    return Target(shown, DEFAULTS | parameters, ours["schema"], connections, deadline_ms / 1000)


def _unreadable(shown: str) -> Misconfigured:
    return Misconfigured(
        f"{shown!r} is no URL of a PostgreSQL database, or has something in it that libpq does not"
        " know. Nothing was opened. Write signs such as @ : / ? in a password as %40 %3A %2F %3F."
        " Try: unspool serve --spool postgres://user:password@host:5432/database"
    )


def _number(ours: dict[str, str], name: str, *, least: int, most: int, shown: str) -> int:
    text = ours[name]
    if text.isascii() and text.isdigit() and least <= int(text) <= most:
        return int(text)
    raise Misconfigured(
        f"{name}={text} in {shown!r} is no number from {least} to {most}. Nothing was opened."
        f" Leave it out, or say: ?{name}={OURS[name]}"
    )
