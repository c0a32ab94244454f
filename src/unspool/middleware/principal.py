"""The principal: who is asking, as the application says. A key is known only within it (I10).

    owner_of(scope)                  the function's own name: tells one application from another
    check(principal) -> Principal    what may stand for a caller; raises Nobody or Unsteady
    Steady()                         asks twice at first: the same caller must be the same twice

A principal that changes from one request to the next makes every repeat a new request, and one that
is the same for two callers gives one the other's answers. Neither can be seen from here in general;
what can be seen is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from ..errors import Misconfigured
from .gate import Principal

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
    """`shop.api:principal`: the same in each process of an application, and after each deploy."""
    module = getattr(scope, "__module__", None) or type(scope).__module__
    name = getattr(scope, "__qualname__", None) or type(scope).__qualname__
    return f"{module}:{name}"


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
