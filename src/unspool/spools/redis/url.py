"""URLs of spools in Redis: which server, and which spool on it.

    split("valkey://cache.example/1?name=orders")    ("redis://cache.example/1", "orders")

`rediss:` and `valkeys:` speak TLS. In the query may stand `name`, and what the client library has
to know of certificates (TLS).
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ...core.urls import concealed
from ...errors import Misconfigured

NAME: Final = "unspool"
SCHEMES: Final = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
TLS: Final = frozenset(
    {"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}
)
_name = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch


def split(url: str) -> tuple[str, str]:
    """The URL as the client library takes it, and the spool's name. Raises `Misconfigured`."""
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
    scheme = SCHEMES[parts.scheme]
    return urlunsplit((scheme, parts.netloc, parts.path, urlencode(pairs), "")), name
