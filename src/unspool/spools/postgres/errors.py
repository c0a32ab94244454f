"""PostgreSQL's trouble in our words (clause 12): what happened, and what has become of the batch.

    translate(error, target, committing=…) -> UnspoolError

Whether a batch happened is known where the server says why it did not, and where COMMIT had not
been sent; else it is not, and that is `Unavailable`. The codes are of PostgreSQL's Appendix A.
"""

from __future__ import annotations

import shlex
from typing import Final

import psycopg

from ...errors import Corrupt, Full, Misconfigured, NotDone, Unavailable, UnspoolError
from .target import Target

_LOOK: Final = "See how it does: {psql} -c 'TABLE pg_stat_activity'"

_STANDBY: Final = (
    NotDone,
    "takes no writes: this server is a standby, or was made read-only",
    "Name all its hosts: postgres://h1,h2/db?target_session_attrs=read-write",
)

TABLE: Final[dict[str, tuple[type[UnspoolError], str, str]]] = {
    "53100": (Full, "has no room left on its disk", "Make room on the server: df -h"),
    "53200": (Full, "has no memory left for this", "Look at the server: free -m"),
    "53300": (
        NotDone,
        "has no connection left for us",
        "Allow more, or ask for fewer: --spool '…?connections=4'",
    ),
    "54000": (Full, "takes nothing so large", "Lower the limit: --body-max-bytes 64MiB"),
    "25006": _STANDBY,
    "0A000": _STANDBY,  # to begin a transaction that writes is a feature a standby does not have
    "57014": (NotDone, "took too long, and gave it up", _LOOK),
    "55P03": (NotDone, "took too long, and gave it up", _LOOK),
    "40P01": (NotDone, "undid this again and again, for others crossed it", _LOOK),
    "40001": (NotDone, "undid this again and again, for others crossed it", _LOOK),
    "XX001": (
        Corrupt,
        "is damaged on the server's disk",
        "Restore it, or save what can be read: {pg_dump}",
    ),
    "XX002": (
        Corrupt,
        "has a damaged index on the server's disk",
        "Build it anew: {psql} -c 'REINDEX SCHEMA {schema}'",
    ),
    "42P01": (
        NotDone,
        "has lost its tables: somebody dropped them",
        "Restore them, or start with none: unspool serve",
    ),
    "42501": (
        Misconfigured,
        "lets this user not do what a spool must",
        "Give it the schema: ALTER SCHEMA {schema} OWNER TO …",
    ),
}
"""SQLSTATE: whose it is, what the spool does, and what helps (see `_filled`). In each the batch did
not happen."""

_AT_CONNECT: Final = (
    ("password authentication failed", "does not know this user with this password"),
    ("no password supplied", "wants a password"),
    ("no pg_hba.conf entry", "lets this user not in from here (pg_hba.conf)"),
    ("authentication failed", "does not let this user in"),
    ("does not support SSL", "does not speak TLS, which the URL asks for"),
    ("certificate verify failed", "has a certificate that the URL does not trust"),
    ("does not match host name", "has a certificate for another name than the URL's"),
)
"""What libpq says where trying again is useless; it has no codes before there is a session."""


def translate(
    error: Exception,
    target: Target,
    *,
    committing: bool,
    late: bool = False,
    connecting: bool = False,
) -> UnspoolError:
    """`late`: we gave up waiting. `connecting`: there was no session yet."""
    spool = f"The spool {target.shown}"
    text = " ".join(str(error).split()) or type(error).__name__
    if connecting:
        return _at_connect(text, target)
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    if state in TABLE and not late:
        kind, what, help_ = TABLE[state]
        return kind(
            f"{spool} {what} ({text}). Nothing of this was done, and everything accepted before is"
            f" kept. {_filled(help_, target)}"
        )
    what = "did not answer in time" if late else f"broke off ({text})"
    look = _filled(_LOOK, target)
    if committing:
        return Unavailable(
            f"{spool} {what}. It may or may not have done this; repeat it under the same key."
            f" {look}"
        )
    return NotDone(f"{spool} {what}. Nothing of this was done; repeat it. {look}")


def _filled(help_: str, target: Target) -> str:
    """With the commands that ask the very server, and the schema."""
    for program in ("psql", "pg_dump"):
        help_ = help_.replace(f"{{{program}}}", target.command(program))
    return help_.replace("{schema}", target.schema)


def _flags(target: Target) -> list[str]:
    """For what takes no other way to say where."""
    found = [(flag, target.parameters.get(name)) for flag, name in (("-h", "host"), ("-p", "port"))]
    return [word for flag, value in found if value for word in (flag, str(value))]


def _at_connect(text: str, target: Target) -> UnspoolError:
    spool = f"The spool {target.shown}"
    kept = "Nothing of this was done, and what was accepted is kept."
    if "database" in text and "does not exist" in text:
        make = target.command("createdb", option="--maintenance-db", dbname="postgres")
        name = shlex.quote(str(target.parameters.get("dbname", "")))
        return Misconfigured(f"{spool} is in no database ({text}). {kept} Make one: {make} {name}")
    if "role" in text and "does not exist" in text:
        make = shlex.join(["createuser", *_flags(target), str(target.parameters.get("user", "…"))])
        return Misconfigured(f"{spool} is not for this user ({text}). {kept} Make it: {make}")
    psql = target.command("psql")
    for words, what in _AT_CONNECT:
        if words in text:
            return Misconfigured(f"{spool} {what} ({text}). {kept} Try it: {psql}")
    return NotDone(
        f"{spool} cannot be reached ({text}). {kept} See whether the server runs:"
        f" {target.command('pg_isready')}"
    )
