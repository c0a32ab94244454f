"""Django is set up before any test here imports anything of it. Its tables and its callers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "middleware")]

from shop_kit import FOLDER, Shop  # noqa: E402


@pytest.fixture(scope="session")
def tables() -> Iterator[None]:
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", run_syncdb=True, verbosity=0)
    yield
    connections.close_all()


@pytest.fixture
def shop(tables: None) -> Iterator[Shop]:
    from django.apps import apps
    from django.db import connections

    yield Shop()
    config: Any = apps.get_app_config("unspool")
    config._changed(setting="UNSPOOL")
    for file in FOLDER.glob("idem.db*"):
        file.unlink()
    tables = ("unspool_once", "django_shop_order", "django_session", "auth_user", "sqlite_sequence")
    with connections["default"].cursor() as cursor:
        for table in tables:  # `flush` would take a second
            cursor.execute(f"DELETE FROM {table}")
    connections.close_all()
