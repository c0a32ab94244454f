"""Problems: every answer that is ours and not the service's, in one table (RFC 9457).

    problem(name, detail, …) -> Response     application/problem+json with Proxy-Status (RFC 9209)

The table is read by the code, by `/_unspool/problems/<name>`, by the docs and by the tests. Each
row says what happened, where the request is now, and what to do; `detail` says it of this one case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

from .core.message import Field, Response, Value

PREFIX: Final = "/_unspool/"
"""Targets under here are ours and are never passed on."""


class Problem(Value, frozen=True):
    status: int
    title: str
    where: str
    """Where the request is now."""
    advice: str
    """What to do."""
    error: str = "http_request_error"
    """The proxy error type of RFC 9209 §2.3."""


_YOURS: Final = "It was not taken: you still have it."
_PASSED: Final = "It was tried and not saved; it may have had its effect."

PROBLEMS: Final[dict[str, Problem]] = {
    "malformed": Problem(
        400, "The request is not HTTP/1.1 as we parse it", _YOURS,
        "Mend the request line, the fields or the framing.",
    ),
    "key-malformed": Problem(
        400, "The Idempotency-Key cannot be read", _YOURS,
        'Send one field with one quoted string, such as "8e03978e-40d5-43e8", at most '
        "255 printable ASCII characters.",
    ),
    "key-missing": Problem(
        400, "This request needs an Idempotency-Key", _YOURS,
        "Send it again with a key of its own: a UUID, made before the first try and kept.",
    ),
    "field-malformed": Problem(
        400, "A field that speaks to the relay cannot be read", _YOURS, "Mend it and send again."
    ),
    "receipt-unknown": Problem(
        404, "There is no such receipt", "Either it never was, or it was kept long enough.",
        "Look at the address again; it is the only proof of what was accepted.",
    ),
    "not-found": Problem(
        404, "There is nothing here", "Addresses under /_unspool/ are the relay's own.",
        "See the wire reference for what there is.",
    ),
    "method": Problem(
        405, "This address does not take that method", "Nothing was done.", "See the field Allow."
    ),
    "timeout": Problem(
        408, "The request took too long to arrive", _YOURS, "Send it again, faster.",
    ),
    "running": Problem(
        409, "The first request with this key is still being tried", "It is with us.",
        "Ask again after Retry-After with the same key, or send `Prefer: wait=10`.",
    ),
    "settled": Problem(
        409, "It can no longer be cancelled", "An attempt is under way, or it has ended.",
        "Look at the receipt for what became of it.",
    ),
    "outcome-unknown": Problem(
        409, "The first request with this key may or may not have had its effect",
        "It was tried; no whole answer came. It is not tried again.",
        "Find out whether it had its effect. If it had not, send it again under a new key.",
    ),
    "nobody": Problem(
        403, "An Idempotency-Key needs a caller who can be told from others", _YOURS,
        "Sign in, or send it without a key.",
    ),
    "expired": Problem(
        410, "This key was used too long ago", "It was dealt with; its answer is no longer kept.",
        "Do not repeat it. If it is new work, give it a new key.",
    ),
    "too-large": Problem(
        413, "The body is larger than we can take responsibility for", _YOURS,
        "Send it without asking for custody, or make it smaller.",
    ),
    "moved": Problem(
        421, "It was moved to another relay", "The relay that has it now knows its key too.",
        "Ask at the service's address as it is now, with the same key or the same receipt.",
        "proxy_internal_response",
    ),
    "key-reused": Problem(
        422, "This key was used for another request", "The first request under it is unharmed.",
        "Give each new request a key of its own.",
    ),
    "fields-too-large": Problem(
        431, "The header section is too large", _YOURS, "Send fewer or shorter fields."
    ),
    "bounced": Problem(
        410, "It was given up", "Responsibility has come back to you.",
        "The receipt says why and lists every attempt.",
    ),
    "unknown": Problem(
        502, "It may or may not have had its effect, and may not be sent again",
        "It was tried; no whole answer came.",
        "Find out at the service, or send such requests with an Idempotency-Key.",
        "http_response_incomplete",
    ),
    "internal": Problem(
        500, "The relay made a mistake", _PASSED, "Tell us, with the line in the relay's log.",
        "proxy_internal_error",
    ),
    "scope-broken": Problem(
        500, "The application cannot say who is asking", "It was not run.",
        "Mend the scope function; the application's log has the reason.",
        "proxy_internal_error",
    ),
    "not-implemented": Problem(
        501, "The relay does not do that", _YOURS,
        "CONNECT, Upgrade, unknown methods and transfer codings but chunked do not pass here.",
    ),
    "no-answer": Problem(
        502, "The service gave no whole answer", _PASSED,
        "Send an Idempotency-Key, and the relay will save such a request and deliver it later.",
        "http_response_incomplete",
    ),
    "unreachable": Problem(
        503, "The service cannot be reached", _YOURS, "Send it again after Retry-After.",
        "destination_unavailable",
    ),
    "slow": Problem(
        504, "The service did not answer in time", _PASSED,
        "Send an Idempotency-Key, and the relay will save such a request and deliver it later.",
        "http_response_timeout",
    ),
    "refused": Problem(
        503, "The relay cannot take responsibility now", _YOURS,
        "Send it again after Retry-After, with the same key.",
        "proxy_internal_response",
    ),
    "in-doubt": Problem(
        503, "The relay may or may not have taken responsibility",
        "The spool has it or has it not; if it has, it is delivered.",
        "Send it again after Retry-After, with the same key: it is not saved twice.",
        "proxy_internal_response",
    ),
    "memory-down": Problem(
        503, "The memory of keys does not answer", "It was not run: you still have it.",
        "Send it again after Retry-After, with the same key.",
        "proxy_internal_error",
    ),
    "closing": Problem(
        503, "The relay is shutting down", _YOURS, "Send it again: another will take it.",
        "proxy_internal_response",
    ),
    "cut-short": Problem(
        503, "The relay is shutting down, and the service had not answered", _PASSED,
        "Find out at the service before you send it again. With an Idempotency-Key such a request "
        "is saved instead.", "http_response_timeout",
    ),
    "busy": Problem(
        503, "The relay has as many connections as it may", _YOURS,
        "Send it again after Retry-After.", "connection_limit_reached",
    ),
    "version": Problem(
        505, "The relay speaks HTTP/1.1 and HTTP/1.0 here", _YOURS, "Use one of them."
    ),
    "loop": Problem(
        508, "The request has come back to the relay that sent it", _YOURS,
        "The destination is the relay itself, or leads to it: mend `--to`.",
        "proxy_loop_detected",
    ),
}  # fmt: skip

STILL_YOURS: Final = frozenset(
    name for name, row in PROBLEMS.items() if "you still have it" in row.where
)
"""Whoever is told one of these knows that nothing was done: it may go elsewhere, key or no key."""

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=1024)
def proxy_status(error: str, detail: str = "", *, received: int = 0) -> Field:
    """The Proxy-Status field (RFC 9209 §2): who answered, and why."""
    value = "unspool"
    if error:
        value += f"; error={error}"
    if received:
        value += f"; received-status={received}"
    if detail:
        safe = "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in detail[:200])
        value += f'; details="{safe}"'
    return b"Proxy-Status", value.encode("ascii")


def problem(
    name: str,
    detail: str = "",
    *,
    retry_after_s: int | None = None,
    fields: Sequence[Field] = (),
    error: str = "",
    **members: object,
) -> Response:
    """A problem document. `members` become members of it (RFC 9457 §3.2)."""
    row = PROBLEMS[name]
    document: dict[str, object] = {
        "type": f"{PREFIX}problems/{name}",
        "title": row.title,
        "status": row.status,
        "detail": detail or row.title,
        "where": row.where,
        "advice": row.advice,
        **members,
    }
    out: list[Field] = [
        (b"Content-Type", b"application/problem+json"),
        (b"Cache-Control", b"no-store"),
        proxy_status(error or row.error, detail),
    ]
    if retry_after_s is not None:
        out.append((b"Retry-After", b"%d" % retry_after_s))
    out.extend(fields)
    return Response(status=row.status, reason=b"", fields=out, body=_encode(document))
