"""System checks: each finds what it is for, and the project as it is has nothing to find."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import override_settings
from django.urls import path
from shop_kit import Shop

from unspool.middleware.django import idempotent
from unspool.middleware.django.checks import CHECKS
from unspool.middleware.django.middleware import IdempotencyMiddleware

OURS = "unspool.middleware.django.middleware.IdempotencyMiddleware"


def found(databases: list[str] | None = None) -> dict[str, str]:
    return {
        str(one.id): f"{one.msg} {one.hint or ''}"
        for one in run_checks(databases=databases)
        if str(one.id).startswith("unspool.")
    }


def unspool(**changes: Any) -> dict[str, Any]:
    given = {**settings.UNSPOOL, **changes}
    return {name: value for name, value in given.items() if value is not None}


def urls(view: Any) -> ModuleType:
    module = ModuleType("urls_of_a_test")
    module.urlpatterns = [path("it", view)]  # type: ignore[attr-defined]
    return module


def view(request: Any) -> None: ...


def careless(inner: Callable[..., Any]) -> Callable[..., Any]:
    def outer(request: Any) -> Any:
        return inner(request)

    outer.unspool_route = inner.unspool_route  # type: ignore[attr-defined]
    return outer


def test_a_project_that_is_in_order(shop: Shop) -> None:
    assert found(["default"]) == {}


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no settings": ({"UNSPOOL": None}, "unspool.E001", "UNSPOOL is missing"),
    "no spool": ({"UNSPOOL": unspool(spool=None)}, "unspool.E001", "where keys are remembered"),
    "no scope": ({"UNSPOOL": unspool(scope=None)}, "unspool.E001", "no default"),
    "a scope that is not there": (
        {"UNSPOOL": unspool(scope="shop.nowhere")}, "unspool.E001", "cannot be found",
    ),
    "a scope that is none": ({"UNSPOOL": unspool(scope=7)}, "unspool.E001", "cannot be called"),
    "an unknown option": (
        {"UNSPOOL": unspool(leese_ms=5)}, "unspool.E001", "Did you mean lease_ms?",
    ),
    "an option that makes no sense": (
        {"UNSPOOL": unspool(lease_ms=5)}, "unspool.E001", "too short",
    ),
    "an alias that is not there": (
        {"UNSPOOL": unspool(using="orders")}, "unspool.E001", "'orders'",
    ),
    "in memory": (
        {"UNSPOOL": unspool(spool="memory:", survives="nothing")}, "unspool.W002", "in memory",
    ),
    "above authentication": (
        {"MIDDLEWARE": [OURS, *[one for one in settings.MIDDLEWARE if one != OURS]]},
        "unspool.E002", "AuthenticationMiddleware",
    ),
    "not in the middleware": ({"MIDDLEWARE": []}, "unspool.W001", "not in MIDDLEWARE"),
    "an atomic view within another transaction": (
        {"ROOT_URLCONF": urls(careless(idempotent(atomic=True)(view))), "ATOMIC": True},
        "unspool.E003", "another transaction around it",
    ),
    "ATOMIC_REQUESTS": ({"ATOMIC": True}, "unspool.W003", "A crash between"),
    "a view with an option that makes no sense": (
        {"ROOT_URLCONF": urls(idempotent(methods=7)(view))}, "unspool.E004", "view",
    ),
    "a view with an alias that is not there": (
        {"ROOT_URLCONF": urls(idempotent(atomic=True, using="orders")(view))},
        "unspool.E004", "'orders'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(shop: Shop, name: str) -> None:
    changes, id_, words = WRONG[name]
    changes = dict(changes)
    connection.settings_dict["ATOMIC_REQUESTS"] = changes.pop("ATOMIC", False)
    try:
        with override_settings(**changes):
            assert words in found().get(id_, ""), found()
            if id_ == "unspool.E001" and "alias" not in name:
                with pytest.raises(ImproperlyConfigured, match="UNSPOOL"):
                    IdempotencyMiddleware(lambda request: None)
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False


def test_a_missing_table_is_found(shop: Shop) -> None:
    """With the command that makes it."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE unspool_once RENAME TO elsewhere")
    try:
        assert "migrate unspool --database default" in found(["default"])["unspool.W004"]
        assert shop.post("/atomic/x").status_code == 500
        assert shop.orders == 0
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO unspool_once")


def test_every_check_has_a_test() -> None:
    proved = {id_ for _, id_, _ in WRONG.values()} | {"unspool.W004"}
    assert proved == set(CHECKS)
