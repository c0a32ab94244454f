"""Django in this process: the project `django_shop`, and its callers.

Settings are one for a process: whoever imports this first has set them up.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

if "SHOP_FOLDER" not in os.environ:
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None  # nothing here asks for a power cut
    os.environ["SHOP_FOLDER"] = tempfile.mkdtemp(prefix="unspool-django-", dir=shm)
    atexit.register(shutil.rmtree, os.environ["SHOP_FOLDER"], ignore_errors=True)
os.environ["DJANGO_SETTINGS_MODULE"] = "django_shop.settings"

import django

django.setup()
del os.environ["DJANGO_SETTINGS_MODULE"]  # others start programs that would look for it

from django.contrib.auth.models import User  # noqa: E402
from django.test import Client  # noqa: E402
from django_shop.models import Order  # noqa: E402

FOLDER = Path(os.environ["SHOP_FOLDER"])


class Shop:
    """The project with empty tables, and a caller who is signed in."""

    def __init__(self) -> None:
        self.client = self.caller("ann")

    def caller(self, name: str, **options: Any) -> Client:
        user, _ = User.objects.get_or_create(username=name)
        client = Client(raise_request_exception=False, **options)
        client.force_login(user)
        return client

    def post(self, path: str, key: str | None = "k1", **data: Any) -> Any:
        return self.client.post(path, data or {"item": "tea"}, **keyed(key))

    @property
    def orders(self) -> int:
        return int(Order.objects.count())


def keyed(key: str | None) -> dict[str, Any]:
    return {} if key is None else {"HTTP_IDEMPOTENCY_KEY": key}
