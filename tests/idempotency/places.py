"""What a row cannot be asked of, and why; and where rows are shown that are not on the wire.

BY_DESIGN[target][row]      it cannot hold there, and why: docs/reference/idempotency.md prints this
ELSEWHERE[row]              which tests show it, of all places at once
"""

from __future__ import annotations

from typing import Final

_AUTH: Final = (
    "stands in front of the service's own authentication: who is refused there may still be"
    " replayed an answer of its own. Let the gateway before it authenticate, or keep answers short"
)
_RUNS: Final = "cannot see whether the service had its effect: it asks again, with the same key"
_SAVES: Final = "does not save requests: the service's error is the caller's, at once"

BY_DESIGN: Final[dict[str, dict[str, str]]] = {
    "relay": {
        "A9": "does not know which requests need a key: the service does, and its 400 passes",
        "D4": "tells callers apart by fields: there is no function that could fail",
        "D5": _AUTH,
        "F8": _RUNS,
        "G3": "cannot tell a validation error from another 422: a corrected body needs a new key",
        "G7": "lets larger bodies through unsaved, and says so: Idempotency-Stored: false",
    },
    "ASGI": {},
    "WSGI": {},
    "Django": {},
    "Retry": {},
}

_PARKING: Final = ("H1", "H2", "H3", "H4", "H5", "H7")
for _target in ("ASGI", "WSGI", "Django"):
    BY_DESIGN[_target].update(dict.fromkeys(_PARKING, _SAVES))

_CRASH: Final = "tests/idempotency_crash/"
_MIDDLEWARE: Final = "tests/middleware/"

ELSEWHERE: Final[dict[str, str]] = {
    "D3": "tests/idempotency/test_inside.py",
    "D6": "tests/idempotency/test_rows.py",
    "D9": "tests/idempotency/test_inside.py",
    "E2": _CRASH,
    "E6": _CRASH,
    "F1": _CRASH,
    "F2": _CRASH,
    "F3": _CRASH,
    "F4": _MIDDLEWARE,
    "F5": _CRASH,
    "F6": _MIDDLEWARE,
    "F10": _CRASH,
    "F11": _CRASH,
    "H6": "tests/relay/test_wire.py",
    "J7": _CRASH,
    "J8": "tests/test_cli.py",
}

NOT_DONE: Final[dict[str, str]] = {
    "D7": "not built: how often a caller may ask is for the gateway that knows its callers, which"
    " counts all their requests and not only those with keys. The spool is bounded by"
    " `key_keep_ms` and refuses when the disk is short (`disk_free_min_bytes`).",
    "E9": "there is no replica to read from: a spool is one store, and every look-up is a write"
    " or goes where writes go.",
}
"""Rows that no place has, and why."""
