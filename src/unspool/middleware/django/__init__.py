"""Idempotency for Django: a middleware, a decorator, checks and commands.

    INSTALLED_APPS = [..., "unspool.middleware.django"]
    MIDDLEWARE = [..., "django.contrib.auth.middleware.AuthenticationMiddleware",
                  "unspool.middleware.django.middleware.IdempotencyMiddleware"]
    UNSPOOL = {"spool": "sqlite:///idem.db", "scope": "unspool.middleware.django.by_user"}

    from unspool.middleware.django import idempotent

    @idempotent(required=True, atomic=True)
    def create(request): ...

The app itself imports no model and no view: it may be named in settings.
"""

from .by_user import by_user
from .route import idempotent

__all__ = ["by_user", "idempotent"]
