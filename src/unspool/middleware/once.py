"""Once: a function is run once for each key, and whoever repeats it gets the same result again.

    @once("sqlite:///idem.db", key=lambda m: m.id, scope="orders")
    def handle(m): …                                       or `async def`, or a method

    once.run("sqlite:///idem.db", m.id, work, scope="orders")      the same for one call
    with once.commit(session, key, scope="orders") as done: …      record and rows: see `commit`
    once.create(session) · once.table(metadata) · once.sweep(session)      see `commit_table`

For queue workers, cron jobs, webhooks: whatever is delivered twice. It needs nothing from the queue
but a name for each message. `scope` names the work, and is its own: one function, one scope.

    key            of the first arguments, as many as it takes: str, bytes, int or UUID
    fingerprint    what tells a repeat from a reuse: all arguments, by the function's signature; the
                   names of some; a function of them; None: nothing
    final          exceptions that are the result: kept, and raised again for each repeat
    transient      exceptions that mean that nothing was done: the next one runs
    on_unknown     asked, with the arguments and `ctx`, where an effect was declared and the run
                   raised (or died, with abandoned="unknown"): gives Done(value), Again(), Unknown()
    encode/decode  what is kept of a result, and the result of that: an id, and the row by its id
    busy           where somebody else runs just now: "raise" Busy, "wait" (up to `wait_max_ms`)

The function may take `ctx`: a `Running`, with `child_key`, `effect`, `commit`, `attempt`. Any other
exception frees the key if no effect was declared; else the key is unknown and does not run.

Raises: `Busy` (let the queue deliver it again later), `Reused`, `OutcomeUnknown`, `NotKept` (done,
result not kept), `Expired` (a UUIDv7 that is too old), `Unavailable` where the spool does not
answer: nothing was run. `Unkeepable` after a run whose result cannot be kept: the fact is kept, and
the result is the error's `value`.

Promises. What the `ledger` promises. Claims are renewed by a thread of its own (`portal`), so a
handler may block for hours; forks are survived; nothing needs to be closed, `once.close()` does it.

Bugs: a handler that dies after its effect and before its record leaves a claim that lapses after
`lease_ms`, and then runs again unless abandoned="unknown". Only co-commit makes the two one. Of an
exception its class, arguments and attributes come back; not its cause or traceback. Of a key that
was unknown for long, and then found out about, the fact is kept from when it became unknown.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any, Final, Literal, TypedDict, TypeVar, Unpack

from ..core.lifecycle import Keeping
from ..errors import Misconfigured
from ..spools.protocol import Spool
from . import commit_table
from .commit import Commit
from .once_work import Again, Done, Function, Terms, Unknown, Work
from .opening import Opening
from .options import Grade, read
from .portal import Portal
from .principal import module_of, owner_of

__all__ = ["Again", "Commit", "Done", "Once", "Unknown", "once"]

F = TypeVar("F", bound=Callable[..., Any])

NAME: Final = "once"
WAIT_MAX_MS: Final = 60_000

Prints = Function | Collection[str] | None
ALL: Final = ()
"""As a fingerprint: all arguments."""


class Options(TypedDict, total=False):
    """See `Rules`, `Tenure` and `Keeping`."""

    name: str
    wait_max_ms: int
    lease_ms: int
    abandoned: Literal["run", "unknown"]
    alone: bool
    answer_ms: int
    key_ms: int
    answer_max_bytes: int
    survives: Grade


class Once:
    """See the head of this file."""

    commit: Final = Commit
    create = staticmethod(commit_table.create)
    table = staticmethod(commit_table.table)
    sweep = staticmethod(commit_table.sweep)
    DDL: Final = commit_table.DDL

    def __init__(self) -> None:
        self._openings: dict[object, Opening] = {}
        self._scopes: dict[object, str] = {}
        self._portal: Final = Portal("unspool-once", on_close=self._let_go)

    def __call__(
        self,
        spool: str | Spool,
        *,
        key: Function,
        scope: str,
        fingerprint: Prints = ALL,
        final: Collection[type[Exception]] = (),
        transient: Collection[type[Exception]] = (),
        on_unknown: Function | None = None,
        encode: Function | None = None,
        decode: Function | None = None,
        busy: Literal["raise", "wait"] = "raise",
        **options: Unpack[Options],
    ) -> Callable[[F], F]:
        """A decorator. Raises `Misconfigured` for what makes no sense, before anything is run."""
        opening, name, wait_max_ms = self._opening(spool, options)
        terms = Terms(
            scope=_checked_scope(scope), key=_callable("key", key), fingerprint=fingerprint,
            final=_exceptions("final", final), transient=_exceptions("transient", transient),
            on_unknown=on_unknown, encode=encode, decode=decode,
            wait_ms=wait_max_ms if _checked_busy(busy) == "wait" else 0, name=name,
        )  # fmt: skip

        def decorate(function: F) -> F:
            self._take_scope(spool, terms, function)
            # Of two applications that were given no name, each has its own scopes.
            owner = "" if "name" in options else owner_of(function)
            work = Work(function, opening=opening, terms=terms, owner=owner)
            return self._wrapped(function, work)

        return decorate

    def run(
        self,
        spool: str | Spool,
        key: object,
        function: Function,
        *,
        scope: str,
        fingerprint: object = None,
        final: Collection[type[Exception]] = (),
        transient: Collection[type[Exception]] = (),
        on_unknown: Function | None = None,
        encode: Function | None = None,
        decode: Function | None = None,
        busy: Literal["raise", "wait"] = "raise",
        **options: Unpack[Options],
    ) -> Any:
        """Call `function`, which takes nothing or `ctx`, once for this key: its result, or where it
        is `async def` an awaitable of it. `fingerprint` is a value that tells repeat from reuse."""
        opening, name, wait_max_ms = self._opening(spool, options)
        terms = Terms(
            scope=_checked_scope(scope), key=lambda: key, fingerprint=lambda: fingerprint,
            final=_exceptions("final", final), transient=_exceptions("transient", transient),
            on_unknown=on_unknown, encode=encode, decode=decode,
            wait_ms=wait_max_ms if _checked_busy(busy) == "wait" else 0, name=name,
        )  # fmt: skip
        work = Work(function, opening=opening, terms=terms)
        return self._wrapped(function, work)()

    def _wrapped(self, function: F, work: Work) -> F:
        portal = self._portal
        wrapper: Any
        if work.waits:

            @functools.wraps(function)
            async def waiting(*args: Any, **kwargs: Any) -> Any:
                return await portal.reach(work, work.call(args, kwargs))

            wrapper = waiting
        else:

            @functools.wraps(function)
            def blocking(*args: Any, **kwargs: Any) -> Any:
                return portal.between(work, work.call(args, kwargs))

            wrapper = blocking
        # Frameworks look at it to see what to give, and `ctx` is not theirs to give.
        wrapper.__signature__ = work.arguments.signature
        wrapper.__annotations__ = {
            name: kind for name, kind in function.__annotations__.items() if name != "ctx"
        }
        return wrapper  # type: ignore[no-any-return]

    def _opening(self, spool: str | Spool, options: Options) -> tuple[Opening, str, int]:
        """Functions that want the same of one spool share it."""
        known = Options.__annotations__
        for name in options:
            if name not in known:
                near = get_close_matches(name, sorted(known), n=1)
                there = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
                raise Misconfigured(f"There is no option {name!r}. {there}")
        usual: Options = {"name": NAME, "answer_ms": options.get("key_ms", Keeping().key_ms)}
        given = {**usual, **options}
        rules, tenure, survives = read(given)  # type: ignore[arg-type]
        which = (spool, rules.name, tenure, survives)
        opening = self._openings.get(which)
        if opening is None:
            opening = self._openings[which] = Opening(
                spool, name=rules.name, owner="", tenure=tenure, survives=survives
            )
        return opening, rules.name, options.get("wait_max_ms", WAIT_MAX_MS)

    def _take_scope(self, spool: str | Spool, terms: Terms, function: Function) -> None:
        """Two functions under one scope would be given each other's results."""
        which = (spool, terms.name, terms.scope)
        ours = f"{module_of(function)}.{function.__qualname__}"
        other = self._scopes.setdefault(which, ours)
        if other != ours:
            raise Misconfigured(
                f"The scope {terms.scope!r} is {other}'s, and {ours} would be given its results."
                " One function, one scope."
            )

    async def _let_go(self) -> None:
        for opening in list(self._openings.values()):
            await opening.aclose()

    def close(self) -> None:
        """Let go of the spools, after calls that are under way. A later call opens them again."""
        self._portal.close()


def _checked_scope(scope: object) -> str:
    if not isinstance(scope, str) or not 0 < len(scope) <= 200:
        raise Misconfigured(f'scope={scope!r}: name the work in 1 to 200 characters: "orders"')
    return scope


def _checked_busy(busy: object) -> object:
    if busy not in ("raise", "wait"):
        raise Misconfigured(f'busy={busy!r}: say "raise" or "wait".')
    return busy


def _callable(what: str, thing: object) -> Function:
    if not callable(thing):
        raise Misconfigured(f"{what}={thing!r} cannot be called: {what}=lambda m: m.id")
    return thing


def _exceptions(what: str, those: object) -> tuple[type[Exception], ...]:
    found: list[type[Exception]] = []
    for one in those if isinstance(those, Collection) else (those,):
        if not (isinstance(one, type) and issubclass(one, Exception)):
            raise Misconfigured(f"{what} names {one!r}, which is no class of Exception.")
        found.append(one)
    return tuple(found)


once: Final = Once()
