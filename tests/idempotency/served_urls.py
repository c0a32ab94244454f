"""The counter service in Django, with one route that needs a key."""

from __future__ import annotations

from django.urls import re_path

from unspool.middleware.django import idempotent
from unspool.testing.counter.urls import view

urlpatterns = [
    re_path(r"^required/", idempotent(required=True, docs="https://docs.example/keys")(view)),
    re_path(r"^.*$", view),
]
