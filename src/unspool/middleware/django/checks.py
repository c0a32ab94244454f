"""System checks: what is wrong with a project's settings before any request finds out.

    python manage.py check                            the settings, the order, the views
    python manage.py check --database default         and the table of atomic views

`CHECKS` lists their ids. An error keeps `runserver` and `migrate` from starting; a warning says
what will surprise somebody. A missing table is a warning, or the migration that makes it could not
run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.urls import URLPattern, URLResolver, get_resolver

from ..commit_table import DDL, NAME
from .keeper import Keeper, read_settings
from .route import Route, default_alias, route_of

OURS: Final = "unspool.middleware.django.middleware.IdempotencyMiddleware"
WHO: Final = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.RemoteUserMiddleware",
)
"""Those that know who is asking."""
VIEWS_MAX: Final = 10_000
METHODS: Final = ("POST", "PATCH", "PUT", "DELETE")

CHECKS: Final = {
    "unspool.E001": "UNSPOOL makes no sense: nothing there, no spool, no scope, an unknown option",
    "unspool.E002": "the middleware stands above one that finds out who is asking",
    "unspool.E003": "an atomic view that ATOMIC_REQUESTS would wrap",
    "unspool.E004": "a view says options that make no sense, or names a database that is not there",
    "unspool.W001": "the middleware is not in MIDDLEWARE",
    "unspool.W002": "a spool in memory, and DEBUG is off",
    "unspool.W003": "ATOMIC_REQUESTS: rows are committed before their record",
    "unspool.W004": "an atomic view whose database has no table unspool_once",
}


def register() -> None:
    checks.register(check_settings)
    checks.register(check_order)
    checks.register(check_views, checks.Tags.urls)
    checks.register(check_table, checks.Tags.database)


def error(id_: str, text: str, hint: str = "") -> checks.CheckMessage:
    kind = checks.Error if ".E" in id_ else checks.Warning
    return kind(text, hint=hint or None, id=id_)


def check_settings(app_configs: Any = None, **_: Any) -> list[checks.CheckMessage]:
    try:
        given = read_settings()
        Keeper.of_settings()
    except ImproperlyConfigured as wrong:
        return [error("unspool.E001", str(wrong))]
    found = []
    if str(given["spool"]).startswith("memory:") and not settings.DEBUG:
        found.append(
            error(
                "unspool.W002",
                "The spool is in memory: each process has its own, and forgets it when it ends.",
                'Put it on a disk: "spool": "sqlite:////var/lib/shop/idem.db"',
            )
        )
    using = given.get("using", "default")
    if using not in settings.DATABASES:
        text = f'UNSPOOL["using"] is {using!r}, and DATABASES has no such alias.'
        found.append(error("unspool.E001", text))
    return found


def check_order(app_configs: Any = None, **_: Any) -> list[checks.CheckMessage]:
    order = list(settings.MIDDLEWARE)
    if OURS not in order:
        text = "unspool.middleware.django is installed, and its middleware is not in MIDDLEWARE."
        return [error("unspool.W001", text, f"Below authentication: {OURS!r}")]
    place = order.index(OURS)
    return [
        error(
            "unspool.E002",
            f"{OURS} stands above {who}, so it cannot know who is asking.",
            f"Move it below {who}.",
        )
        for who in WHO
        if who in order and order.index(who) > place
    ]


def check_views(app_configs: Any = None, **_: Any) -> list[checks.CheckMessage]:
    found: dict[str, checks.CheckMessage] = {}
    wrapping = {
        alias for alias, database in settings.DATABASES.items() if database.get("ATOMIC_REQUESTS")
    }
    if wrapping and OURS in settings.MIDDLEWARE:
        names = ", ".join(sorted(wrapping))
        found["W003"] = error(
            "unspool.W003",
            f"ATOMIC_REQUESTS is on for {names}: a view's rows are committed, and then its record."
            " A crash between the two runs it again.",
            "Mark views that matter: @idempotent(atomic=True). Silence this if all are.",
        )
    try:
        keeper = Keeper.of_settings()
    except ImproperlyConfigured:  # E001 says so
        keeper = None
    for view, route in marked_views():
        alias = route.using or default_alias()
        name = getattr(view, "__qualname__", repr(view))
        if alias not in settings.DATABASES:
            text = f"{name} is atomic in {alias!r}, and DATABASES has no such alias."
            found[f"E004 {name}"] = error("unspool.E004", text)
        elif route.atomic and alias in wrapping - getattr(view, "_non_atomic_requests", set()):
            found[f"E003 {name}"] = error(
                "unspool.E003",
                f"{name} is atomic, and ATOMIC_REQUESTS would put another transaction around it.",
                "@idempotent exempts the view that it marks. For a method or an action exempt its"
                " class: @method_decorator(transaction.non_atomic_requests, name='dispatch')",
            )
        try:
            if keeper is not None:
                keeper.gate(route)
        except ImproperlyConfigured as wrong:
            found[f"E004 {name}"] = error("unspool.E004", f"{name}: {wrong}")
    return list(found.values())


def check_table(
    app_configs: Any = None, databases: Sequence[str] | None = None, **_: Any
) -> list[checks.CheckMessage]:
    wanted = {route.using or default_alias() for _view, route in marked_views() if route.atomic}
    found = []
    for alias in sorted(wanted.intersection(databases or ())):
        connection = connections[alias]
        if connection.vendor not in DDL:
            known = ", ".join(sorted(DDL))
            text = f"Atomic views are known in {known}, and {alias!r} is {connection.vendor}."
            found.append(error("unspool.W004", text))
        elif NAME not in connection.introspection.table_names():
            text = f"A view is atomic in {alias!r}, and there is no table {NAME}."
            hint = f"python manage.py migrate unspool --database {alias}"
            found.append(error("unspool.W004", text, hint))
    return found


def marked_views() -> Iterator[tuple[Any, Route]]:
    """Every view that a URL leads to and that says something, once for each thing it says."""
    if not getattr(settings, "ROOT_URLCONF", None):
        return
    for view in views_of(get_resolver().url_patterns, [VIEWS_MAX]):
        seen = {id(route): route for method in METHODS if (route := route_of(view, method))}
        yield from ((view, route) for route in seen.values())


def views_of(patterns: Iterable[Any], left: list[int]) -> Iterator[Any]:
    for pattern in patterns:
        left[0] -= 1
        if left[0] < 0:
            return
        if isinstance(pattern, URLResolver):
            yield from views_of(pattern.url_patterns, left)
        elif isinstance(pattern, URLPattern):
            yield pattern.callback
