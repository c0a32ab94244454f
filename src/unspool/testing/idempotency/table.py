"""The conformance table: what is true of a server that takes an Idempotency-Key.

    ROWS["B1"]      Row: its level, its sentence, what it needs of a server, where it comes from

M must hold, S should. The rows come from the IETF draft, from what the best implementations do, and
from what was found wrong with the others. A row that needs what a server does not offer is not
asked; rows that need `processes` or `inside` cannot be asked over HTTP at all, and stand here so
that the table is whole. Rows have one function each, in the files of their sections.
"""

from __future__ import annotations

from typing import Final

from ...core.message import Value


class Row(Value, frozen=True):
    level: str
    """M or S."""
    sentence: str
    needs: tuple[str, ...] = ()
    """Every one of them: names in `service.NEEDS`, `MOUNTS`, `CALLERS` and `PLACES`."""
    some: tuple[str, ...] = ()
    """At least one of them; the row is asked of those that there are."""


SECTIONS: Final = {
    "A": "The key",
    "B": "The first answer and its replay",
    "C": "Sameness",
    "D": "Isolation and security",
    "E": "At the same time",
    "F": "Crash, lease, fence",
    "G": "What is remembered",
    "H": "Saved 5xx and redelivery",
    "J": "Lifetime",
}

FALSY: Final = ("empty", "blank", "zero", "quotes", "list", "null")
BYTES: Final = ("binary", "gzip", "charset")
LASTING: Final = ("402", "404", "409", "422")
PASSING: Final = ("once-401", "once-403", "once-408", "once-425", "once-429")

ROWS: Final[dict[str, Row]] = {
    "A1": Row("M", "A quoted key (a structured-field string) is taken: one execution."),
    "A2": Row("M", "The bare form of a key is the same key as the quoted one."),
    "A3": Row("M", "Escapes within the quotes are read; unbalanced quotes, bad escapes and bytes"
              " beyond ASCII are a 400."),
    "A4": Row("S", "Parameters behind the key are accepted and ignored."),
    "A5": Row("M", "Two Idempotency-Key fields, or a bare key with a comma, are a 400."),
    "A6": Row("M", "An empty key is a 400."),
    "A7": Row("M", "A key over the limit is a 400."),
    "A9": Row("M", "Where a key is required, a request without one is a 400 problem document that"
              " leads to documentation.", ("required",)),
    "A10": Row("M", "Without a key nothing is merged: two equal requests are two executions."),
    "A11": Row("M", "On GET, HEAD and OPTIONS a key is ignored."),
    "A12": Row("S", "PUT and DELETE with a key go by a policy, and its answer is consistent."),
    "A13": Row("M", "A key with control characters, quotes, separators or markup is opaque or a"
               " 400, and no error repeats it."),
    "B1": Row("M", "A repeat gets the same status and the same bytes, and nothing runs."),
    "B2": Row("M", "A replay says Idempotent-Replayed: true, and a first answer does not."),
    "B3": Row("M", "Location, ETag and Content-Type survive the replay.", ("fields",)),
    "B4": Row("M", "Set-Cookie and authentication challenges reach the first caller and are not"
              " replayed.", ("cookie",)),
    "B5": Row("M", "A handler that sets a cookie is not run again.", ("cookie",)),
    "B6": Row("S", "A replay has a fresh Date, Cache-Control: no-store, and tells when the answer"
              " was first given."),
    "B7": Row("M", "Empty and falsy answers are replayed exactly.", some=FALSY),
    "B8": Row("M", "Binary, compressed and non-ASCII answers are replayed exactly.", some=BYTES),
    "B9": Row("M", "What changed meanwhile does not change the replay."),
    "B11": Row("S", "Access-Control-Expose-Headers survives, so that scripts can see the mark.",
               ("fields",)),
    "C1": Row("M", "Another body under the key is a 422, and the first record is unharmed."),
    "C2": Row("M", "Another path or method under the key never gets the first's answer."),
    "C3": Row("M", "Another query under the key is a 422."),
    "C4": Row("M", "The same JSON in another order and with other white space is a repeat."),
    "C5": Row("M", "Fields that change from try to try do not make another request."),
    "C6": Row("M", "Another key with the same body is another request."),
    "C7": Row("M", "The refusal of a reuse tells nothing of the first request or its answer."),
    "C8": Row("S", "A reuse is refused at once, also while the first request runs.", ("slow",)),
    "C9": Row("M", "A path and a body cut at another place are another request.", ("paths",)),
    "C10": Row("S", "Multipart with a new boundary and the same parts is a repeat, or refused:"
               " never run twice in silence."),
    "D1": Row("M", "Another caller with the same key and body has an execution of its own and"
              " never sees the first's answer.", ("other",)),
    "D2": Row("M", "The same caller with a new token gets the replay.", ("renewed",)),
    "D3": Row("M", "Without a way to tell callers apart nothing can be set up.", ("inside",)),
    "D4": Row("M", "A caller that cannot be told is refused, and nothing runs.", ("odd",)),
    "D5": Row("M", "A caller whose rights were taken away gets 401 or 403, not a replay.",
              ("revoke",)),
    "D6": Row("S", "Keys do not stand in logs.", ("inside",)),
    "D7": Row("S", "A caller that makes too many keys is slowed down with 429, and replays go on.",
              ("inside",)),
    "D9": Row("M", "A spoilt record fails closed: 500 or 503, never run, never unpickled.",
              ("inside",)),
    "E1": Row("M", "50 parallel requests under one key are one execution; the others get its answer"
              " or 409."),
    "E2": Row("M", "The same over several processes.", ("processes",)),
    "E3": Row("M", "The 409 is a problem document with Retry-After.", ("slow",)),
    "E4": Row("S", "Prefer: wait=N waits for the first's answer, and not for longer.", ("slow",)),
    "E5": Row("M", "A look-up that misses while the first finishes is looked at again: one"
              " execution."),
    "E6": Row("S", "A record swept between look and write gets a truthful answer.", ("inside",)),
    "E7": Row("M", "Of those who wait for one that vanishes, at most one runs at a time.",
              ("slow-raise",)),
    "E8": Row("S", "A caller that breaks off within its request leaves nothing claimed."),
    "E9": Row("M", "Keys are read where they are written, not from a replica.", ("inside",)),
    "F1": Row("M", "After kill -9 the key is free, or known as unknown, within the lease.",
              ("processes",)),
    "F2": Row("M", "A handler that takes longer than the lease keeps it.", ("processes",)),
    "F3": Row("M", "An owner that was paused beyond its lease changes nothing any more.",
              ("processes",)),
    "F4": Row("M", "With co-commit, its business rows roll back, too.", ("processes",)),
    "F5": Row("M", "A renewal under way when the handler ends does not lose its answer.",
              ("processes",)),
    "F6": Row("M", "With co-commit, a crash leaves effect and record, or neither.",
              ("processes",)),
    "F7": Row("M", "A handler that raises before any effect frees the key: a retry runs.",
              ("raise-once",)),
    "F8": Row("M", "One that raises after an effect ends as unknown: a retry is told so and does"
              " not run.", ("effect-raise",)),
    "F9": Row("M", "A caller that goes away does not stop the handler; a retry gets its answer.",
              ("slow",)),
    "F10": Row("S", "An answer that cannot be stored is given, and says so; a retry does not run.",
               ("inside",)),
    "F11": Row("S", "A clock that steps an hour does not make anything run twice.",
               ("processes",)),
    "G1": Row("M", "Lasting refusals (402, 404, 409, 422) are replayed.", some=LASTING),
    "G2": Row("M", "Passing refusals (401, 403, 408, 425, 429) are not: a retry runs.",
              some=PASSING),
    "G3": Row("S", "A validation error is not remembered: a corrected body runs under the same"
              " key.", ("valid",)),
    "G4": Row("M", "The server's own refusals (409, 422) are never remembered.", ("slow",)),
    "G5": Row("M", "A 5xx goes by a policy: run once more, replayed, or saved.", ("once-500",)),
    "G6": Row("M", "Of an answer that is too large or streams the fact is kept: a retry does not"
              " run.", some=("large", "stream")),
    "G7": Row("S", "A request over the limit is a 413 that leaves nothing behind.", ("limit",)),
    "H1": Row("M", "A failure under a key is saved and answered 202 with an address to ask.",
              ("parks", "down")),
    "H2": Row("M", "A repeat while it is saved gets the same 202 and address, and sends nothing.",
              ("parks", "down")),
    "H3": Row("M", "Every delivery carries the same key.", ("parks", "down-twice")),
    "H4": Row("M", "Once it is delivered, a repeat and the address have the final answer.",
              ("parks", "down-twice")),
    "H5": Row("M", "Without a key a failure is passed back, and nothing is sent again.",
              ("parks", "down")),
    "H6": Row("S", "What was never sent may be sent again in any case.", ("processes",)),
    "H7": Row("M", "Delivery ends with its time: it is given up, says so, and is not tried again.",
              ("parks", "lifetime", "dead")),
    "H8": Row("S", "The service's advice on retries is kept and given again.", ("advice",)),
    "J1": Row("M", "How long keys and answers are kept is told: in a field, or in a document."),
    "J2": Row("S", "When the answer is forgotten and the key is not, a repeat is refused and does"
              " not run.", ("short",)),
    "J3": Row("S", "A key that tells that it is older than keys are kept is refused."),
    "J4": Row("S", "A key that tells that it was made in the future is a 400."),
    "J5": Row("M", "What still runs is not forgotten, however long it takes.", ("short", "longer")),
    "J6": Row("M", "Age is judged by the clock, not by what was swept.", ("short",)),
    "J7": Row("M", "Where the memory does not answer, a request with a key is a 503 with"
              " Retry-After, and nothing runs.", ("processes",)),
    "J8": Row("S", "An operator can list keys that are stuck, look at one, and settle it.",
              ("inside",)),
}  # fmt: skip
