"""The gate: in front of an application's handler, one run for each key.

    name = key_of(keys, rules=…)                     the key's name | a refusal | None: not for us
    response = await gate(request, name=…, principal=…, wait_ms=…, run=…)

`run(running)` is the handler: it gives a Response, or raises. What the middlewares share is here;
what ASGI, WSGI and Django are different in is theirs. The relay in front of a service has its own
road (`relay`); both use the tables of `core.idempotency`.

The order (conformance A to G): the key is read; the scope is asked; the body is here whole; the
claim is written; the handler runs; its answer is written before anybody sees it.

Promises. A key that is known never runs again while it is remembered (I5), and its answer is given
only within the scope it was made in (I10). Where the memory does not answer nothing runs (503). An
answer that could not be stored is given all the same, and says so: `Idempotency-Stored: false`.

Not remembered: 5xx that mean trouble and 408, 425, 429 (unless `store_errors`), 401, 403, 407, 511
(they are about the moment), answers that the application calls invalid (`unstored`, by default
FastAPI's own validation errors), what said `forget`, and our own problems.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec

from ..answers import by_age, replayed, retention, with_fields
from ..core.idempotency import (
    KEY_CHARS_MAX,
    Do,
    Unreadable,
    read_key,
    worth_remembering,
)
from ..core.message import Destination, Field, Request, Response, Value, fingerprint, identify
from ..core.outcome import Outcome, judge
from ..core.tenure import Tenure
from ..errors import Corrupt, UnspoolError
from ..ledger import Ask, Claim, Ledger, Taken
from ..problems import problem
from ..spools.protocol import Entry
from .running import Running

log = logging.getLogger("unspool.middleware")

NOT_STORED: Final[Field] = (b"Idempotency-Stored", b"false")
RETRY_S: Final = 1

Principal = str | bytes | int
Run = Callable[[Running], Awaitable[Response]]


def never(response: Response) -> bool:
    return False


def is_validation_error(response: Response) -> bool:
    """FastAPI's own answer to a body that does not fit: a 422 whose `detail` lists what, where.

    It is given before the handler runs, so nothing was done, and the corrected body may come under
    the same key (conformance G3).
    """
    if response.status != 422 or response.rest is not None or len(response.body) > 64 * 1024:
        return False
    try:
        found = msgspec.json.decode(response.body, type=_Invalid)
    except msgspec.MsgspecError:
        return False
    return bool(found.detail)


class _Detail(msgspec.Struct):
    type: str
    loc: list[str | int]
    msg: str


class _Invalid(msgspec.Struct):
    detail: list[_Detail]


class Rules(Value, frozen=True):
    """How an application treats keys."""

    name: str = "app"
    """The application's name in the spool: its keys are its own."""
    methods: frozenset[str] = frozenset({"POST", "PATCH"})
    """Others pass by, with a key or without."""
    required: bool = False
    """A request of these methods without a key is refused."""
    key_max_chars: int = KEY_CHARS_MAX
    """A longer key is refused."""
    body_max_bytes: int = 1024 * 1024
    """A request under a key with a larger body is refused: it could not be told from another."""
    wait_max_ms: int = 60_000
    """The longest that `Prefer: wait=` may wait for the first request under a key."""
    store_errors: bool = False
    """Remember 5xx, too: a repeat gets the same error again."""
    docs: str = ""
    """Where your documentation of keys is: named in the refusal of a request without one."""
    unstored: Callable[[Response], bool] = is_validation_error
    """Which other answers are not remembered."""


class Opens(Protocol):
    """Where the ledger is: see `opening`."""

    @property
    def tenure(self) -> Tenure: ...

    async def ledger(self) -> tuple[Ledger, bytes]: ...


class Gate:
    def __init__(self, *, rules: Rules, opening: Opens) -> None:
        self._rules = rules
        self._opening = opening
        self._retention: Final[Field] = retention(opening.tenure.keeping)

    async def __call__(
        self, request: Request, *, name: str, principal: Principal, wait_ms: int, run: Run
    ) -> Response:
        """The answer. Raises only what `run` raises."""
        wait_ms = min(wait_ms, self._rules.wait_max_ms)
        response = await self._answer(request, name, principal, wait_ms, run)
        return with_fields(response, self._retention)

    async def _answer(
        self, request: Request, name: str, principal: Principal, wait_ms: int, run: Run
    ) -> Response:
        try:
            ledger, secret = await self._opening.ledger()
            ask = self._ask(request, name=name, principal=principal, secret=secret)
            claim = await ledger.claim(ask, wait_ms=wait_ms)
            refusal = await self._too_old(claim, ledger) if isinstance(claim, Claim) else None
        except Corrupt as error:
            log.error("a record is spoilt: %s", error)
            return problem(
                "memory-down", "what we know of this key cannot be read", retry_after_s=60
            )
        except UnspoolError as error:
            log.error("nothing runs under a key: %s", error)
            return problem("memory-down", retry_after_s=RETRY_S)
        except Exception:
            log.exception("nothing runs under a key: the spool made a mistake")
            return problem("memory-down", retry_after_s=RETRY_S)
        if refusal is not None:
            return refusal
        if isinstance(claim, Taken):
            return told(claim)
        return await self._run(claim, secret, run)

    def _ask(self, request: Request, *, name: str, principal: Principal, secret: bytes) -> Ask:
        destination = Destination(self._rules.name)
        return Ask(
            key=identify(secret, scope=[as_bytes(principal)], destination=destination, name=name),
            name=name,
            fingerprint=fingerprint(request),
            destination=destination,
        )

    async def _too_old(self, claim: Claim, ledger: Ledger) -> Response | None:
        """A key that nobody knows, and that tells how old it is (J3, J4)."""
        if claim.attempt > 1:
            return None
        keeping = ledger.tenure.keeping
        refusal = by_age(claim.ask.name, now=ledger.now(), keeping=keeping)
        if refusal is not None:
            await claim.release()
        return refusal

    async def _run(self, claim: Claim, secret: bytes, run: Run) -> Response:
        running = Running(
            key=claim.ask.key,
            name=claim.ask.name,
            fingerprint=claim.ask.fingerprint,
            attempt=claim.attempt,
            secret=secret,
            held=claim.held,
        )
        try:
            response = await run(running)
        except BaseException:
            # Raised or cancelled: whether it had an effect only the application knows (F7, F8).
            await (claim.unknown() if running.affected else claim.release())
            raise
        if not self.stands(response, running):
            await (claim.unknown() if running.affected and _troubled(response) else claim.release())
            return response
        if not await claim.done(response):
            return with_fields(response, NOT_STORED)
        return response

    def stands(self, response: Response, running: Running) -> bool:
        """Is this the answer that repeats shall get?"""
        if running.forgotten or not worth_remembering(response):
            return False
        if _troubled(response):
            return self._rules.store_errors and response.status >= 500
        return not self._rules.unstored(response)


def _troubled(response: Response) -> bool:
    return judge(response).outcome is Outcome.ERROR


def told(taken: Taken) -> Response:
    """What one is told whose key is taken."""
    what = taken.recall
    if what.do is Do.REPLAY and taken.entry is not None:
        return replayed(taken.entry)
    if what.do in (Do.WAIT, Do.ATTACH):
        return problem("running", retry_after_s=RETRY_S)
    fields = _location(taken.entry) if what.problem == "expired" else ()
    return problem(what.problem or "running", what.detail, fields=fields)


def _location(entry: Entry | None) -> Sequence[Field]:
    """Where the answer led, which outlives it (conformance J2)."""
    where = entry.trail[-1].location if entry is not None and entry.trail else ""
    return [(b"Location", where.encode("latin-1"))] if where else ()


def key_of(keys: Sequence[bytes], *, rules: Rules) -> str | Response | None:
    """The key's name; a refusal; or None: there is no key, and none is needed."""
    name = read_key(keys, chars_max=rules.key_max_chars)
    if isinstance(name, Unreadable):
        return problem("key-malformed", name.why)
    if name is None and rules.required:
        link = b'<%b>; rel="describedby"; type="text/html"' % rules.docs.encode()
        return problem("key-missing", fields=[(b"Link", link)] if rules.docs else ())
    return name


def as_bytes(principal: Principal) -> bytes:
    """A principal with its kind: 7 and "7" are two people."""
    if isinstance(principal, bytes):
        return b"b" + principal
    return f"{type(principal).__name__[0]}{principal}".encode()
