"""Django, set up for the adapters: settings, the counter service as urlconf.

application = configured(middleware, …)
"""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings

from served import FILE

GUARD = "unspool.testing.counter.urls.Guard"


def configured(*middleware: str, urls: str = "unspool.testing.counter.urls", **more: Any) -> Any:
    from django.core.wsgi import get_wsgi_application

    settings.configure(
        SECRET_KEY="compared",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=urls,
        MIDDLEWARE=[GUARD, *middleware],
        COUNTER={"file": FILE, "offers": ["revoke"], "mounts": []},
        CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": FILE + "-django",
                "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
            }
        },
        USE_TZ=True,
        **more,
    )
    django.setup()
    return get_wsgi_application()
