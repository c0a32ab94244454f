"""What a row cannot be asked of, and why; and where rows are shown that are not on the wire.

BY_DESIGN[target][row]      it cannot hold there, or need not, and why
ELSEWHERE[row][target]      the tests that show it, where the suite cannot ask over HTTP
NOT_DONE[row]               no target has it, and why

Read by the tests, and by `record.py` for docs/reference/idempotency.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

HERE: Final = ("relay", "Retry", "ASGI", "WSGI", "Django")
INSIDE: Final = ("ASGI", "WSGI", "Django")
"""Those that run in the application, around its handlers."""

_SAVES: Final = "does not save requests: the service's error is the caller's, at once"
_ONE_STORE: Final = "has no replica to read from: a spool is one store, read where it is written"

BY_DESIGN: Final[dict[str, dict[str, str]]] = {
    "relay": {
        "A9": "does not know which requests need a key: the service does, and its 400 passes",
        "D3": "has a scope to begin with: every field that credentials come in (`scope_fields`)",
        "D4": "tells callers apart by fields: there is no function that could fail",
        "D5": "stands in front of the service's own authentication: a caller whose rights were"
        " taken away may still be given an answer that it had before. Where that matters,"
        " authenticate before the relay, or keep answers short (`answer_keep_ms`)",
        "E9": _ONE_STORE,
        "F2": "renews nothing: an attempt ends before its lease does (`lease_ms` must exceed"
        " `total_ms`, or it does not start)",
        "F4": "is not in the application: co-commit is for what runs there",
        "F5": "renews nothing",
        "F6": "is not in the application: co-commit is for what runs there",
        "F8": "cannot see an effect: it asks the service again, with the same key",
        "F10": "says that it is not stored, and knows no more: a repeat goes to the service, with"
        " the same key",
        "G3": "cannot tell a validation error from another 422: a corrected body needs a new key",
        "G7": "lets larger bodies through unsaved, and says so: `Idempotency-Stored: false`",
    },
    "Retry": {
        "D3": "has a scope to begin with: every field that credentials come in (`scope_fields`)",
        "D5": "stands outside of authentication, which what it saved must meet again when it is"
        " run: a caller whose rights were taken away may still be given an answer that it had"
        " before. Keep answers short (`answer_ms`) where that matters",
        "E9": _ONE_STORE,
        "F2": "renews nothing: a handler is cancelled before its lease ends (`attempt_ms`)",
        "F4": "is not in the transaction: co-commit is for what runs within it",
        "F5": "renews nothing",
        "F6": "is not in the transaction: co-commit is for what runs within it",
        "F10": "says that it is not stored, and knows no more: a repeat meets the middleware"
        " within it, with the same key",
        "H6": "has no way to the application that could fail before it is reached",
    },
    **{
        target: {
            "E9": _ONE_STORE,
            **dict.fromkeys(("H1", "H2", "H3", "H4", "H5", "H6", "H7"), _SAVES),
        }
        for target in INSIDE
    },
}


def _inside(path: str, **more: str) -> Mapping[str, str]:
    return {**dict.fromkeys(INSIDE, path), **more}


_CRASH: Final = "tests/idempotency_crash/"
_MIDDLEWARE: Final = "tests/middleware/"
_DJANGO: Final = "tests/django_app/test_commands.py"
_SPOOLS: Final = "tests/conformance/test_spools.py"
_WIRE: Final = "tests/relay/test_wire.py"
_WORLD: Final = "tests/sim/test_world.py"

ELSEWHERE: Final[dict[str, Mapping[str, str]]] = {
    "D3": _inside("tests/idempotency/test_inside.py"),
    "D6": dict.fromkeys(HERE, "tests/idempotency/test_rows.py"),
    "D9": dict.fromkeys(HERE, "tests/idempotency/test_inside.py"),
    "E2": dict.fromkeys(HERE, "tests/idempotency/test_processes.py"),
    "E6": _inside(_CRASH + "test_sweep.py", relay=_SPOOLS, Retry=_SPOOLS),
    "F1": _inside(
        _CRASH + "test_owner.py",
        relay="tests/crash/test_kill.py",
        Retry=_MIDDLEWARE + "test_retry_servers.py",
    ),
    "F2": _inside(_CRASH + "test_owner.py"),
    "F3": _inside(_CRASH + "test_owner.py", relay=_WORLD, Retry=_WORLD),
    "F4": _inside("tests/once/test_commit_processes.py"),
    "F5": _inside(_CRASH + "test_owner.py"),
    "F6": _inside("tests/once/test_commit_processes.py"),
    "F10": _inside(_CRASH + "test_store.py"),
    "F11": _inside(_CRASH + "test_clock.py"),
    "H6": {"relay": _WIRE},
    "J7": _inside(_CRASH + "test_store.py", relay=_WIRE, Retry=_WIRE),
    "J8": {"relay": "tests/test_cli.py", "Retry": "tests/test_cli.py", "Django": _DJANGO},
}

NOT_DONE: Final[dict[str, str]] = {
    "D7": "how often a caller may ask is for the gateway that knows its callers, and counts all"
    " their requests, not only those with keys. The spool is bounded by time (`key_keep_ms`), and"
    " refuses when the disk is short (`disk_free_min_bytes`).",
    "F11": "several relays or workers over one spool believe the machine's clock: when it steps by"
    " more than a lease while a request with a key is being tried, another may try it, too. With"
    " one nothing depends on it.",
    "J8": "in ASGI and WSGI applications `unspool queue --bounced` lists the keys whose outcome is"
    " unknown, and `unspool show` tells of one; a command that settles one is Django's only so"
    " far.",
}
"""Rows that no target has, or not all, and why."""
