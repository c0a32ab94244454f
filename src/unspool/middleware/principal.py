"""The principal: who is asking, as the application says. A key is known only within it (I10).

    owner_of(scope)                  the function's package: tells one application from another
    check(principal) -> Principal    what may stand for a caller; raises Nobody or Unsteady
    Steady()                         asks twice at first: the same caller must be the same twice
    await Asker(scope).principal(s)  all of it, for ASGI: the principal, or why nothing is run (D4)

A principal that changes from one request to the next makes every repeat a new request, and one that
is the same for two callers gives one the other's answers. Neither can be seen from here in general;
what can be seen is refused.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..core.message import Response
from ..errors import Misconfigured
from ..problems import problem
from .gate import Principal

log: Final = logging.getLogger("unspool.middleware")

Scope = MutableMapping[str, Any]
ScopeOf = Callable[[Scope], Principal | Awaitable[Principal | None] | None]

TWICE: Final = 16
"""How many of the first requests have their scope asked twice."""
PRINCIPAL_MAX_CHARS: Final = 1_000

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+", re.IGNORECASE)


class Nobody(Exception):
    """The scope function says that there is no caller."""


class Unsteady(Exception):
    """What the scope function says cannot be who is asking."""


def checked_scope(scope: object) -> Callable[..., Any]:
    """Raises `Misconfigured` for what cannot be called."""
    if not callable(scope):
        raise Misconfigured(
            f"scope={scope!r} cannot be called. Say who is asking, by a function of the request:"
            ' scope=lambda scope: scope["user"].id'
        )
    return scope


def owner_of(scope: Callable[..., Any]) -> str:
    """`shop`: the package of the scope function, the same in each process of an application.

    Not its name, for functions are renamed and move; and of a program that was started by its file
    the file's name, for a server imports it by that.
    """
    while isinstance(scope, partial):
        scope = scope.func
    return module_of(scope).partition(".")[0]


def module_of(function: Callable[..., Any]) -> str:
    """Where it was defined, by the name that others import it by."""
    module: str = getattr(function, "__module__", None) or type(function).__module__
    if module == "__main__":
        main = sys.modules[module]
        spec = getattr(main, "__spec__", None)
        module = spec.name if spec is not None else Path(getattr(main, "__file__", module)).stem
    return module


def check(principal: object) -> Principal:
    if principal is None or principal == "" or principal == b"":
        raise Nobody
    if isinstance(principal, bool) or not isinstance(principal, str | bytes | int):
        raise Unsteady(
            f"the scope function gave a {type(principal).__name__}: give a str, bytes or int that"
            " stays the same, such as the user's id"
        )
    if isinstance(principal, str) and _ADDRESS.search(principal):
        raise Unsteady("the scope function gave an object's address, which changes: give its id")
    if not isinstance(principal, int) and len(principal) > PRINCIPAL_MAX_CHARS:
        raise Unsteady(f"the scope function gave more than {PRINCIPAL_MAX_CHARS} characters")
    return principal


class Steady:
    """Is the same request's caller the same when asked again? Looked at while all is new."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = TWICE

    @property
    def asks_again(self) -> bool:
        if self._left:
            self._left -= 1
            return True
        return False

    @staticmethod
    def compare(first: Principal, second: object) -> None:
        if first != second:
            raise Unsteady("the scope function gave two answers for one request")


class Asker:
    """Asks the application who is asking."""

    def __init__(self, scope: ScopeOf) -> None:
        self._scope_of: Final = checked_scope(scope)
        self._steady: Final = Steady()

    async def principal(self, scope: Scope) -> Principal | Response:
        """Who is asking; or why nothing is run under this key (D4)."""
        try:
            principal = check(await self._ask(scope))
            if self._steady.asks_again:
                Steady.compare(principal, await self._ask(scope))
        except Nobody:
            return problem("nobody")
        except Unsteady as fault:
            log.error("nothing runs under a key: %s", fault)
            return problem("scope-broken", str(fault))
        except Exception:
            log.exception("the scope function raised; nothing runs under a key")
            return problem("scope-broken", "the scope function raised")
        return principal

    async def _ask(self, scope: Scope) -> Any:
        found = self._scope_of(scope)
        return await found if inspect.isawaitable(found) else found
