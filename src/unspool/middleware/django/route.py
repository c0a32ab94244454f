"""Routes: what one view says of keys, beside what UNSPOOL says for all.

    @idempotent                                     marks a view, and changes nothing
    @idempotent(required=True)                      without a key: 400
    @idempotent(atomic=True, using="default")       record and rows in one transaction: `atomic`
    @idempotent(methods={"PUT"}, body_max_bytes=…)  any option of `Rules` but its name

On function views, on methods of class-based views (post, dispatch; for a class by
`method_decorator`), and on the actions of viewsets such as those of Django REST framework. The
order among other decorators does not matter: what is said is read from the view's attributes, which
decorators that use `functools.wraps` carry on. `atomic` makes the view exempt from ATOMIC_REQUESTS,
for its transaction must be the outermost.

Refused: marking a view twice; `atomic` on an asynchronous view (Django's transactions block);
options that there are not. A request with a key that reaches a marked view without having passed
the middleware is an error, and nothing is run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from ...core.message import Response
from ..gate import Rules, key_of
from ..options import RULES
from .passing import PASSING, Passing, request_among

MARK: Final = "unspool_route"
"""The attribute of a view that has its Route."""
FOR_A_ROUTE: Final = RULES - {"name"}
"""The options that a view may say for itself."""


class Route:
    """What a view says. One for each `@idempotent`; compared by identity."""

    __slots__ = ("atomic", "options", "using")

    def __init__(self, *, atomic: bool, using: str | None, options: Mapping[str, Any]) -> None:
        self.atomic: Final = atomic
        self.using: Final = using
        """None: as UNSPOOL says."""
        self.options: Final = options


def idempotent(
    view: Callable[..., Any] | None = None,
    *,
    atomic: bool = False,
    using: str | None = None,
    **options: Any,
) -> Any:
    """See the head of this file. Raises `ImproperlyConfigured` for what is refused."""
    for name in options:
        if name not in FOR_A_ROUTE:
            known = FOR_A_ROUTE | {"atomic", "using"}
            raise ImproperlyConfigured(f"@idempotent: no option {name!r}. {nearest(name, known)}")
    route = Route(atomic=atomic, using=using, options=options)

    def marked(view: Callable[..., Any]) -> Callable[..., Any]:
        return _marked(view, route)

    return marked if view is None else marked(view)


def _marked(view: Any, route: Route) -> Callable[..., Any]:
    if not callable(view) or isinstance(view, type):
        raise ImproperlyConfigured(
            "@idempotent goes on a view or a method. For a class:"
            ' @method_decorator(idempotent(…), name="dispatch")'
        )
    if getattr(view, MARK, None) is not None:
        raise ImproperlyConfigured(f"{view.__qualname__} is marked by @idempotent twice.")
    inner: Callable[..., Any]
    if iscoroutinefunction(view):
        if route.atomic:
            raise ImproperlyConfigured(
                f"{view.__qualname__} is asynchronous, and Django's transactions are not: leave out"
                " atomic=True, or make it an ordinary function (it works under ASGI, too)."
            )

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            entered = enter(args, route)
            if not isinstance(entered, Passing):
                return await view(*args, **kwargs) if entered is None else entered
            try:
                return await view(*args, **kwargs)
            finally:
                entered.inside = False

        inner = awaited
    else:

        def called(*args: Any, **kwargs: Any) -> Any:
            entered = enter(args, route)
            if not isinstance(entered, Passing):
                return view(*args, **kwargs) if entered is None else entered
            try:
                if not route.atomic:
                    return view(*args, **kwargs)
                from .atomic import in_one_transaction

                return in_one_transaction(view, args, kwargs, entered, using=route.using)
            finally:
                entered.inside = False

        inner = called
    wrapped = functools.wraps(view)(inner)
    setattr(wrapped, MARK, route)
    if route.atomic:
        from django.db import transaction

        transaction.non_atomic_requests(using=route.using or default_alias())(wrapped)
    return wrapped


def default_alias() -> str:
    try:
        given = getattr(settings, "UNSPOOL", None)
    except ImproperlyConfigured:  # imported where there is no project
        return "default"
    return str(given.get("using", "default")) if isinstance(given, Mapping) else "default"


def enter(args: tuple[Any, ...], route: Route) -> Passing | Any | None:
    """The request's passing; an answer that refuses it; or None: keys do not matter to it."""
    request = request_among(args)
    passing: Passing | None = getattr(request, PASSING, None)
    if passing is None:
        wanted = route.atomic or route.options.get("required")
        if request.META.get("HTTP_IDEMPOTENCY_KEY") is None and not wanted:
            return None
        raise ImproperlyConfigured(
            "A view is marked by @idempotent, and its request did not pass the middleware. Nothing"
            " was run. Name it in MIDDLEWARE, below authentication:"
            " unspool.middleware.django.middleware.IdempotencyMiddleware"
        )
    if passing.inside:
        raise ImproperlyConfigured(
            "A view that is marked by @idempotent is within another (dispatch and post, say). Mark"
            " the inner or the outer one."
        )
    rules = passing.rules
    if route.options:  # where the middleware did not see them: a decorator without functools.wraps
        rules = own_rules(rules, route)
    if request.method not in rules.methods:
        return None
    if passing.running is None and rules.required:
        refusal = key_of([], rules=rules)
        assert isinstance(refusal, Response), "A9: a key is needed"
        from .answer import http_of

        return http_of(refusal)
    passing.inside = True
    return passing


def own_rules(rules: Rules, route: Route) -> Rules:
    from msgspec.structs import replace

    methods = route.options.get("methods", rules.methods)
    return replace(
        rules,
        **{name: route.options[name] for name in ("required", "docs") if name in route.options},
        methods=frozenset(str(method).upper() for method in methods),
    )


def route_of(view: Callable[..., Any] | None, method: str) -> Route | None:
    """What the view of a URL says for a method: its own mark, its class's, or its action's."""
    if view is None:
        return None
    found = getattr(view, MARK, None)
    if found is None:
        kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
        actions = getattr(view, "actions", None) or {}  # a viewset's: {"post": "create"}
        handler = getattr(kind, actions.get(method.lower(), method.lower()), None)
        found = getattr(handler, MARK, None) or getattr(getattr(kind, "dispatch", None), MARK, None)
    return found if isinstance(found, Route) else None


def nearest(name: str, known: frozenset[str]) -> str:
    near = get_close_matches(name, sorted(known), n=1)
    return f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(known))}."
