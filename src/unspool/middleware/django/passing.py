"""One request on its way through: the middleware tells the view, and the view its transaction.

setattr(request, PASSING, Passing(rules=…, gate=…, using=…))
request_among(args)                 a view's request, of a function or of a method
"""

from __future__ import annotations

from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from ..gate import Gate, Rules
from ..running import Running

PASSING: Final = "_unspool"
"""The attribute of a request that has its Passing."""


class Passing:
    """What is known of it."""

    __slots__ = ("gate", "inside", "rules", "running", "using")

    def __init__(self, *, rules: Rules, gate: Gate, using: str) -> None:
        self.rules: Final = rules
        self.gate: Final = gate
        self.using: Final = using
        self.running: Running | None = None
        """None: it came without a key."""
        self.inside = False
        """Is a marked view running?"""


def request_among(args: tuple[Any, ...]) -> Any:
    """A view's request: the first argument, or the second of a method."""
    for one in args[:2]:
        if hasattr(one, "META") and hasattr(one, "method"):
            return one
    raise ImproperlyConfigured(
        "@idempotent found no request among the first two arguments: it goes on views and on"
        " methods of views."
    )
