"""The counter service with django-idempotency-key's decorator on its view."""

from __future__ import annotations

from django.urls import re_path
from idempotency_key.decorators import idempotency_key

from unspool.testing.counter.urls import view

urlpatterns = [re_path(r"^.*$", idempotency_key(optional=True)(view))]
