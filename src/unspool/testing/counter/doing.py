"""What the counter service does: the steps it can be told, and the counts it keeps.

    asked = read(method, target, keys)      a Count to run, a Look, a Revoking, or None: not ours
    counts = Counts(file)
    run = counts.arrive(subject, key)       counted; its number from 1
    step.answer(subject, run) -> Answer     what to say
    for pause_s in pauses(step, …)          how long it takes
    counts.leave(subject)
    counts.seen(subject) -> Seen

The adapters (asgi, wsgi, urls) only carry bytes. Raises `ValueError` for instructions that make no
sense: the caller gets a 400, and nothing is counted.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from os import getpid
from typing import Final
from urllib.parse import parse_qs

import msgspec

from ...core.message import Value

DELAY_MAX_MS: Final = 60_000
SIZE_MAX_BYTES: Final = 64 * 1024 * 1024
STEPS_MAX: Final = 16
KEYS_MAX: Final = 64
"""Of the keys that came with runs of a subject, so many are told again."""
CHUNK: Final = b"x" * 1024
STREAM_PAUSE_MS: Final = 5
LOOK_MS: Final = 20
"""How often a run that lasts looks whether it was ended."""

OFFERS: Final = ("steps", "paths")
"""What every form of the service can: `guarded` adds `revoke`, one that runs our middleware
`effect`."""

_COUNT: Final = re.compile(r"(?:/([a-z]+))?/count/([A-Za-z0-9_-]{1,64})")
_ENDED: Final = re.compile(r"(?:/[a-z]+)?/count/([A-Za-z0-9_-]{1,64})/ended")
_REVOKED: Final = re.compile(r"/callers/([A-Za-z0-9_-]{1,64})/revoked")
_BEARER: Final = re.compile(r"Bearer ([A-Za-z0-9_-]{1,64})(?:\.[A-Za-z0-9_.-]{0,256})?")


class Answer(Value, frozen=True):
    status: int
    fields: Sequence[tuple[str, str]]
    body: bytes
    chunks: int = 0
    """So many times CHUNK follow, with pauses."""


class Step(Value, frozen=True, forbid_unknown_fields=True):
    """What one run does."""

    status: int = 201
    text: str | None = None
    """The body. Without one it is a JSON document that tells subject and run."""
    base64: str = ""
    """The body, as bytes."""
    size: int = 0
    """The body is so many bytes."""
    chunks: int = 0
    """The body is a stream of so many KiB, with 5 ms between them."""
    fields: tuple[tuple[str, str], ...] = ()
    delay_ms: int = 0
    """How long it takes, before it answers and after it has counted."""
    lasts: bool = False
    """It takes until the subject is ended, and `delay_ms` at most."""
    raises: bool = False
    """The handler raises instead of answering, after its delay."""
    effect: bool = False
    """Tell our middleware that there may have been an effect (`Running.effect`)."""
    valid: str = ""
    """A name: a JSON body without it is refused, as FastAPI refuses it, and nothing is counted."""

    def answer(self, subject: str, run: int) -> Answer:
        fields = list(self.fields)
        if self.text is not None:
            body = self.text.encode()
        elif self.base64:
            body = b64decode(self.base64)
        elif self.size:
            body = b"x" * self.size
        elif self.chunks:
            body = b""
        else:
            body = msgspec.json.encode({"subject": subject, "run": run, "process": getpid()})
            if not any(name.lower() == "content-type" for name, _ in fields):
                fields.append(("Content-Type", "application/json"))
        if self.status in (204, 304):
            body = b""
        return Answer(self.status, fields, body, self.chunks)

    def refusal(self, body: bytes) -> Answer | None:
        """Of a body that is not valid, in FastAPI's own form."""
        if not self.valid:
            return None
        try:
            document = msgspec.json.decode(body, type=dict[str, object])
        except msgspec.MsgspecError:
            document = {}
        if self.valid in document:
            return None
        fault = {"type": "missing", "loc": ["body", self.valid], "msg": "Field required"}
        text = msgspec.json.encode({"detail": [fault]})
        return Answer(422, [("Content-Type", "application/json")], text)


class Count(Value, frozen=True):
    """A request that counts."""

    subject: str
    steps: tuple[Step, ...]

    def step(self, run: int) -> Step:
        return self.steps[min(run, len(self.steps)) - 1]


class Look(Value, frozen=True):
    """A question for a count; without a subject, for what the service offers."""

    subject: str = ""


class Revoking(Value, frozen=True):
    caller: str


class Ending(Value, frozen=True):
    subject: str


Asked = Count | Look | Revoking | Ending


def read(method: str, path: str, query: str) -> Asked | None:
    if path == "/counter" and method in ("GET", "HEAD"):
        return Look()
    if (found := _REVOKED.fullmatch(path)) and method == "PUT":
        return Revoking(found[1])
    if (found := _ENDED.fullmatch(path)) and method == "PUT":
        return Ending(found[1])
    found = _COUNT.fullmatch(path)
    if found is None:
        return None
    if method in ("GET", "HEAD", "OPTIONS"):
        return Look(found[2])
    if method not in ("POST", "PUT", "PATCH", "DELETE"):
        return None
    return Count(found[2], _steps(parse_qs(query).get("do", ["[{}]"])[-1]))


def _steps(text: str) -> tuple[Step, ...]:
    try:
        steps = msgspec.json.decode(text, type=tuple[Step, ...])
    except msgspec.MsgspecError as error:
        raise ValueError(f"`do` is no list of steps: {error}") from None
    if not 0 < len(steps) <= STEPS_MAX:
        raise ValueError(f"`do` takes 1 to {STEPS_MAX} steps")
    for step in steps:
        sizes = (step.size, step.chunks * len(CHUNK))
        if not 0 <= step.delay_ms <= DELAY_MAX_MS or not 0 <= min(sizes) <= max(sizes):
            raise ValueError(f"`delay_ms` takes 0 to {DELAY_MAX_MS}")
        if max(sizes) > SIZE_MAX_BYTES or not 200 <= step.status <= 599:
            raise ValueError(f"a body may have {SIZE_MAX_BYTES} bytes, a status be 200 to 599")
    return steps


def pauses(step: Step, ended: Callable[[], bool]) -> Iterator[float]:
    """Seconds to sleep, one after the other: what the step takes."""
    left_ms = step.delay_ms
    while left_ms > 0 and not (step.lasts and ended()):
        pause_ms = min(left_ms, LOOK_MS) if step.lasts else left_ms
        left_ms -= pause_ms
        yield pause_ms / 1000


def caller_of(authorization: str) -> str:
    """`Bearer alice.7` is alice with her seventh token; nobody where it is something else."""
    found = _BEARER.fullmatch(authorization)
    return found[1] if found else ""


def principal_of(caller: str) -> str | None:
    """What a scope function says of these callers: two of them are there to be refused (D4)."""
    if caller == "raise":
        raise LookupError("the scope function was asked to raise")
    if caller == "nobody":
        return None
    return caller or "anonymous"


class Seen(Value, frozen=True):
    count: int
    most_at_once: int
    live: int
    """Runs that have come and not left."""
    keys: Sequence[str]
    """The Idempotency-Key of each run, oldest first; empty where a run had none."""


_TABLES: Final = """
CREATE TABLE IF NOT EXISTS counts (
    subject TEXT PRIMARY KEY, count INTEGER NOT NULL, live INTEGER NOT NULL, most INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS keys (subject TEXT, run INTEGER, key TEXT);
CREATE TABLE IF NOT EXISTS ended (subject TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revoked (caller TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Counts:
    """Counts in a file that several processes share. Safe to be used by several threads."""

    def __init__(self, file: str) -> None:
        self._file: Final = file
        self._lock = threading.Lock()
        self._pid = 0
        self._database: sqlite3.Connection | None = None

    def _open(self) -> sqlite3.Connection:
        """One connection for each process: SQLite's do not survive a fork."""
        if self._database is None or self._pid != getpid():
            self._pid = getpid()
            database = sqlite3.connect(
                self._file, timeout=20, isolation_level=None, check_same_thread=False
            )
            for line in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=OFF"):
                database.execute(line).fetchall()
            database.executescript(_TABLES)
            self._database = database
        return self._database

    def arrive(self, subject: str, key: str) -> int:
        with self._lock, _transaction(self._open()) as database:
            with closing(
                database.execute(
                    "INSERT INTO counts VALUES (?, 1, 1, 1) ON CONFLICT DO UPDATE SET"
                    " count = count + 1, live = live + 1, most = max(most, live + 1)"
                    " RETURNING count",
                    (subject,),
                )
            ) as cursor:
                [(run,)] = cursor.fetchall()
            if run <= KEYS_MAX:
                database.execute("INSERT INTO keys VALUES (?, ?, ?)", (subject, run, key))
        return int(run)

    def leave(self, subject: str) -> None:
        with self._lock:
            self._open().execute("UPDATE counts SET live = live - 1 WHERE subject = ?", (subject,))

    def seen(self, subject: str) -> Seen:
        with self._lock:
            database = self._open()
            row = database.execute(
                "SELECT count, most, live FROM counts WHERE subject = ?", (subject,)
            ).fetchone()
            keys = database.execute(
                "SELECT key FROM keys WHERE subject = ? ORDER BY run", (subject,)
            ).fetchall()
        count, most, live = row or (0, 0, 0)
        return Seen(count=count, most_at_once=most, live=live, keys=[key for (key,) in keys])

    def end(self, subject: str) -> None:
        with self._lock:
            self._open().execute("INSERT OR IGNORE INTO ended VALUES (?)", (subject,))

    def has_ended(self, subject: str) -> bool:
        with self._lock:
            found = self._open().execute("SELECT 1 FROM ended WHERE subject = ?", (subject,))
            return found.fetchone() is not None

    def revoke(self, caller: str) -> None:
        with self._lock:
            self._open().execute("INSERT OR IGNORE INTO revoked VALUES (?)", (caller,))

    def is_revoked(self, caller: str) -> bool:
        with self._lock:
            found = self._open().execute("SELECT 1 FROM revoked WHERE caller = ?", (caller,))
            return found.fetchone() is not None

    def close(self) -> None:
        with self._lock:
            if self._database is not None and self._pid == getpid():
                self._database.close()
            self._database = None


class _transaction:
    """Write now or wait: no transaction that has read is refused its write."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        self._database.execute("BEGIN IMMEDIATE")
        return self._database

    def __exit__(self, *error: object) -> None:
        self._database.execute("COMMIT" if error[0] is None else "ROLLBACK")


def told(seen: Seen) -> bytes:
    return msgspec.json.encode(seen)


def offered(*, more: Sequence[str], mounts: Sequence[str]) -> bytes:
    """What GET /counter says."""
    document: Mapping[str, object] = {
        "counter": 1,
        "offers": [*OFFERS, *more],
        "mounts": list(mounts),
    }
    return msgspec.json.encode(document)
