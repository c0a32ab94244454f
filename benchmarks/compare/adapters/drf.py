"""drf-idempotency: its middleware and its database backend, as in its README. It has no hook for
who is asking; the other settings are at what it recommends."""

from __future__ import annotations

from django.core.management import call_command
from django_ import configured

from served import threads

application = configured(
    "drf_idempotency.middleware.IdempotencyMiddleware",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "drf_idempotency"],
    IDEMPOTENCY={"BACKEND": "drf_idempotency.backends.database.DatabaseBackend"},
)

call_command("migrate", verbosity=0)
threads(application)
