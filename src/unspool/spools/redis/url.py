"""URLs of spools in Redis: which server, which spool on it, and how an operator asks that server.

    place = read_url("valkey://me:secret@cache.example/1?name=orders")
    place.url        "redis://me:secret@cache.example/1"      as the client library takes it
    place.name       "orders"
    place.shown      "redis://me:...@cache.example/1"         for people
    place.cli        "valkey-cli -h cache.example -p 6379 -n 1 --user me --askpass"

`rediss:` and `valkeys:` speak TLS. In the query may stand `name`, and what the client library has
to know of certificates (TLS).
"""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from ...core.message import Value
from ...core.urls import concealed
from ...errors import Misconfigured

NAME: Final = "unspool"
SCHEMES: Final = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
TLS: Final = frozenset(
    {"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}
)
FILES: Final = {"ssl_ca_certs": "--cacert", "ssl_certfile": "--cert", "ssl_keyfile": "--key"}
"""What redis-cli calls them."""
_name = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch


class Place(Value, frozen=True):
    url: str
    """As the client library takes it."""
    name: str
    """The spool's."""
    shown: str
    """The server, for people."""
    cli: str
    """How an operator asks this very server, from a shell; it asks for the password itself."""


def read_url(url: str) -> Place:
    """Raises `Misconfigured`."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        named = False
    if not named or not re.fullmatch(r"/?|/\d{1,5}", parts.path):
        scheme = url.partition(":")[0]
        raise Misconfigured(
            f"{concealed(url)!r} names no server. Nothing was opened. Write its host and, where"
            f" that is not 6379 and 0, port and database: --spool {scheme}://127.0.0.1:6379/0"
        )
    pairs = dict(parse_qsl(parts.query, keep_blank_values=True))
    name = pairs.pop("name", NAME)
    unknown = sorted(pairs.keys() - (TLS if SCHEMES[parts.scheme] == "rediss" else set()))
    if unknown or not _name(name):
        what = f"{unknown[0]!r} is no setting" if unknown else f"{name!r} is no name"
        raise Misconfigured(
            f"{what} of a spool in Redis. Nothing was opened. There are: name (letters, digits,"
            f" '.', '_' and '-') and, with rediss:, {', '.join(sorted(TLS))}. Write: --spool"
            " redis://127.0.0.1:6379/0?name=orders"
        )
    made = urlunsplit((SCHEMES[parts.scheme], parts.netloc, parts.path, urlencode(pairs), ""))
    return Place(made, name, concealed(made), _cli(parts, pairs))


def _cli(parts: SplitResult, options: dict[str, str]) -> str:
    host = unquote(parts.hostname or "")
    database = parts.path.strip("/")
    words = ["valkey-cli" if parts.scheme.startswith("valkey") else "redis-cli"]
    words += ["-h", host, "-p", str(parts.port or 6379)]
    if database.strip("0"):
        words += ["-n", database]
    if SCHEMES[parts.scheme] == "rediss":
        words += ["--tls", *([] if _is_address(host) else ["--sni", host])]
        for option, flag in FILES.items():
            words += [flag, options[option]] if option in options else []
        words += ["--insecure"] if options.get("ssl_cert_reqs") == "none" else []
    if parts.username:
        words += ["--user", unquote(parts.username)]
    if parts.username or parts.password:
        words.append("--askpass")
    return shlex.join(words)


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(host))
    return False
