"""The work of `once`: one function, and what it does under a key. In the portal's loop.

    work = Work(function, opening=…, terms=…)
    call = work.call(args, kwargs)          its key and fingerprint: where the caller is
    await work(hand, call)                  the result, now or kept; see `once` for what it raises

`hand` has the function called where its caller is: in the caller's thread, or awaited in the
caller's task. All else is here, once for `def` and `async def`: the claim, its renewal, its end.

What is unknown is settled for good (I3), so what people find out about it goes under a key derived
from it: a generation. Whoever reconciles has the claim of the next generation; what it decides is
recorded there, and repeats walk from one to the next. The attempts of all of them count on.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

from ..core.idempotency import Do, Recall, Unreadable, minted
from ..core.message import Destination, Key, Response, Value, identify
from ..errors import (
    Busy,
    Expired,
    Misconfigured,
    NotKept,
    OutcomeUnknown,
    Refused,
    Reused,
    Unacceptable,
    Unkeepable,
    UnspoolError,
)
from ..ledger import Ask, Claim, Ledger, Taken
from .arguments import Arguments, Bound, digest, named, result_type, some
from .kept import FACT, pack, pack_error, unpack
from .names import take_name
from .opening import Opening
from .running import Running
from .visit import Interrupted

log = logging.getLogger("unspool.once")

GENERATIONS_MAX: Final = 32
"""How often one key may end as unknown."""
MEDIA_TYPE: Final = (b"Content-Type", b"application/msgpack")

Function = Callable[..., Any]
HandOver = Callable[..., Awaitable[Any]]


class Done(Value, frozen=True):
    """Of `on_unknown`: it had its effect, and this is its result."""

    value: Any = None


class Again(Value, frozen=True):
    """Of `on_unknown`: it had no effect, or may be done twice. Run it."""


class Unknown(Exception):
    """Of `on_unknown`, given or raised: nobody knows yet. It is asked again at the next call."""


class Terms(Value, frozen=True):
    """How a function wants to be done once."""

    scope: str
    key: Function
    fingerprint: Function | Collection[str] | None
    final: tuple[type[Exception], ...]
    transient: tuple[type[Exception], ...]
    on_unknown: Function | None
    encode: Function | None
    decode: Function | None
    wait_ms: int
    """How long to wait for another who does it just now; 0: `Busy` at once."""
    name: str
    """The application's."""


class Call(Value, frozen=True):
    """One call of the function, as its caller made it."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    bound: Bound
    name: str
    fingerprint: bytes


class Work:
    def __init__(
        self, function: Function, *, opening: Opening, terms: Terms, owner: str = ""
    ) -> None:
        """`owner` is the application, where it has no name; empty: it has, and is believed."""
        self.waits: Final = inspect.iscoroutinefunction(function)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise Misconfigured(f"{function.__qualname__} yields: it has no one result to keep.")
        self.arguments: Final = Arguments(function)
        if isinstance(terms.fingerprint, Collection):
            self.arguments.has(terms.fingerprint)
        plain = terms.encode is None and terms.decode is None
        self._type: Final = result_type(function) if plain else Any
        self._function: Final = function
        self._opening: Final = opening
        self._terms: Final = terms
        self._owner = owner

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Raises TypeError as the function would, and `Misconfigured` where there is no key."""
        bound = self.arguments.bound(args, kwargs)
        return Call(
            args=args,
            kwargs=kwargs,
            bound=bound,
            name=named(some(self._terms.key, bound)),
            fingerprint=self._fingerprint(bound),
        )

    async def __call__(self, hand: HandOver, call: Call) -> Any:
        ledger, secret = await self._opening.ledger()
        if self._owner:
            await self._take_scope(ledger)
        base, before = self._key(secret, call.name, 0), 0
        for generation in range(GENERATIONS_MAX):
            ask = Ask(
                key=self._key(secret, call.name, generation),
                name=call.name,
                fingerprint=call.fingerprint,
                destination=Destination(self._terms.name),
            )
            claim = await ledger.claim(ask, wait_ms=self._terms.wait_ms)
            if isinstance(claim, Taken):
                if not _is_unknown(claim.recall):
                    return await self._told(claim, call.name, hand)
                if self._terms.on_unknown is None:
                    break
                before += claim.entry.attempt if claim.entry is not None else 1
                continue
            if not generation:
                await _refuse_old(claim, ledger)
            running = Running(
                key=base,
                name=call.name,
                fingerprint=call.fingerprint,
                attempt=before + claim.attempt,
                secret=secret,
                held=claim.held,
                scope=f"{self._terms.name}/{self._terms.scope}",
            )
            run = _Run(self, hand, claim, running, call)
            return await (run.reconciled() if generation else run.first())
        raise OutcomeUnknown(
            f"What was done under the key {call.name!r} of {self._terms.scope!r} may or may not"
            " have had its effect. It was not run again. Find out, and say so by on_unknown=…, or"
            " do the work under a new key."
        )

    async def _take_scope(self, ledger: Ledger) -> None:
        """It is this application's, or it is refused; asked once."""
        await take_name(
            ledger.custody.spool, name=self._terms.name, scope=self._terms.scope,
            owner=self._owner, now=ledger.now(),
        )  # fmt: skip
        self._owner = ""

    def _fingerprint(self, bound: Bound) -> bytes:
        wanted = self._terms.fingerprint
        if wanted is None:
            return b""
        if callable(wanted):
            return digest(some(wanted, bound))
        return digest({name: bound[name] for name in (wanted or bound)})

    def _key(self, secret: bytes, name: str, generation: int) -> Key:
        """The key of this work; the generations of one work have a key each."""
        scope = [b"once", self._terms.scope.encode()]
        if generation:
            scope.append(b"%d" % generation)
        destination = Destination(self._terms.name)
        return identify(secret, scope=scope, destination=destination, name=name)

    async def _told(self, taken: Taken, name: str, hand: HandOver) -> Any:
        """What one gets whose key is taken."""
        what, entry = taken.recall, taken.entry
        who = f"the key {name!r} of {self._terms.scope!r}"
        if what.do in (Do.WAIT, Do.ATTACH):
            raise Busy(f"Somebody else runs under {who} just now. Nothing was run; ask again soon.")
        if what.do is Do.REPLAY and entry is not None and entry.answer is not None:
            packed = entry.answer.body if entry.stored else FACT
            return await self.again(packed, hand)
        if what.problem == "key-reused":
            raise Reused(
                f"Other work was done under {who}. Nothing was run, and that work is unharmed. Give"
                " each new work a key of its own; or say what does not count: fingerprint=…"
            )
        if what.problem == "expired":
            raise NotKept(f"What was done under {who} is known; its result is no longer kept.")
        raise Unacceptable(f"Nothing runs under {who}: {what.detail or what.problem}.")

    async def again(self, packed: bytes, hand: HandOver) -> Any:
        value = unpack(packed, self._type, declared=self._terms.final)
        decode = self._terms.decode
        if decode is None:
            return value
        return await self._at(hand, decode, value)

    async def _at(self, hand: HandOver, function: Function, *args: Any, **kwargs: Any) -> Any:
        """Call it where our caller is, whether it is `async def` or not."""
        if not self.waits:
            return await hand(lambda: function(*args, **kwargs))

        async def awaited() -> Any:
            found = function(*args, **kwargs)
            return await found if inspect.isawaitable(found) else found

        return await hand(awaited)


class _Run:
    """One call that has the claim."""

    def __init__(
        self,
        work: Work,
        hand: HandOver,
        claim: Claim,
        running: Running,
        call: Call,
    ) -> None:
        self._work = work
        self._terms = work._terms
        self._hand = hand
        self._claim = claim
        self._running = running
        self._call = call

    async def first(self) -> Any:
        """Run the function, and keep what came of it."""
        work, running = self._work, self._running
        ctx = {"ctx": running} if work.arguments.takes_ctx else {}
        try:
            result = await work._at(
                self._hand, work._function, *self._call.args, **{**self._call.kwargs, **ctx}
            )
        except Exception as error:
            await self._failed(error)
            raise
        except BaseException:
            await self._released()
            raise
        return await self._keep(result)

    async def reconciled(self) -> Any:
        """Ask what became of the run before; nobody else asks meanwhile."""
        hook = self._terms.on_unknown
        assert hook is not None
        try:
            found = await self._work._at(
                self._hand, lambda: some(hook, self._call.bound, ctx=self._running)
            )
        except Unknown as unknown:
            found = unknown
        except BaseException:
            await self._claim.release()
            raise
        if isinstance(found, Again):
            return await self.first()
        if isinstance(found, Done):
            return await self._keep(found.value)
        await self._claim.release()
        if isinstance(found, Unknown):
            raise OutcomeUnknown(
                f"Nobody knows yet what became of {self._running.name!r} of {self._terms.scope!r}:"
                f" {found}. It was not run again, and will be asked about at the next call."
            )
        raise Misconfigured(
            f"on_unknown gave a {type(found).__qualname__}. It gives Done(value), Again() or"
            " Unknown(). Nothing was run."
        )

    async def _failed(self, error: Exception) -> None:
        declared = self._nearest(error)
        if _is_of_the_moment(error, declared):
            await self._released()
        elif declared in self._terms.final:
            max_bytes = self._work._opening.tenure.keeping.answer_max_bytes
            packed = pack_error(error, declared, max_bytes=max_bytes)
            await self._claim.done(_as_answer(422, packed))
        elif declared is not None:
            await self._claim.release()
        else:
            await self._released()

    def _nearest(self, error: Exception) -> type[Exception] | None:
        """The declared class that is nearest to that of the error."""
        known = {*self._terms.final, *self._terms.transient}
        return next((one for one in type(error).__mro__ if one in known), None)

    async def _released(self) -> None:
        """It raised: whether it had an effect only the application knows (F7, F8)."""
        await (self._claim.unknown() if self._running.affected else self._claim.release())

    async def _keep(self, result: Any) -> Any:
        encode, max_bytes = self._terms.encode, self._work._opening.tenure.keeping.answer_max_bytes
        try:
            value = result if encode is None else await self._work._at(self._hand, encode, result)
            packed = pack(value, max_bytes=max_bytes)
        except BaseException as error:
            # It was done, and that is a fact, whatever it gave.
            await self._claim.done(_as_answer(200, FACT))
            if isinstance(error, Unkeepable):
                error.value = result
            raise
        if not await self._claim.done(_as_answer(200, packed)):
            log.warning("done, and not stored: key %s", self._claim.ask.key)
        return result


def _is_of_the_moment(error: Exception, declared: type[Exception] | None) -> bool:
    """An interrupt, or a refusal of our own: no result of the work, though `final=(Exception,)`
    would cover it, unless it is named."""
    if isinstance(error, Interrupted):
        return True
    return isinstance(error, Refused) and not (declared and issubclass(declared, UnspoolError))


def _as_answer(status: int, packed: bytes) -> Response:
    return Response(status=status, reason=b"", fields=(MEDIA_TYPE,), body=packed)


def _is_unknown(recall: Recall) -> bool:
    return recall.do is Do.REFUSE and recall.problem == "outcome-unknown"


async def _refuse_old(claim: Claim, ledger: Ledger) -> None:
    """A key that nobody knows, and that tells how old it is (J3, J4)."""
    if claim.attempt > 1:
        return
    found = minted(claim.ask.name, now=ledger.now(), key_ms=ledger.tenure.keeping.key_ms)
    if found is None:
        return
    await claim.release()
    if isinstance(found, Unreadable):
        raise Unacceptable("The key says that it was made in the future. Nothing was run.")
    raise Expired
