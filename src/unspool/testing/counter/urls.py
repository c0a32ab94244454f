"""The counter service as a Django urlconf.

    ROOT_URLCONF = "unspool.testing.counter.urls"
    MIDDLEWARE = ["unspool.testing.counter.urls.Guard", "unspool.middleware.django…"]
    COUNTER = {"file": "counts.db", "offers": ["effect", "revoke"], "mounts": []}

`Guard` says who is asking in `request.caller`, and `principal(request)` is the scope function: see
`asgi`. Needs Django.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from django.conf import settings  # type: ignore[import-not-found,unused-ignore]
from django.http import (  # type: ignore[import-not-found,unused-ignore]
    HttpResponse,
    StreamingHttpResponse,
)
from django.urls import re_path  # type: ignore[import-not-found,unused-ignore]
from django.views.decorators.csrf import (  # type: ignore[import-not-found,unused-ignore]
    csrf_exempt,
)

from .doing import Answer, Counts, caller_of, principal_of, read
from .wsgi import answer_to, guarding, parts_of


@cache
def counts() -> Counts:
    return Counts(str(settings.COUNTER["file"]))


@csrf_exempt  # type: ignore[untyped-decorator,unused-ignore]
def view(request: Any) -> Any:
    try:
        asked = read(request.method, request.path, request.META.get("QUERY_STRING", ""))
        answer = answer_to(
            asked,
            counts(),
            body=lambda: request.body,
            key=request.headers.get("Idempotency-Key", ""),
            running=getattr(request, "unspool", None),
            offers=settings.COUNTER.get("offers", ()),
            mounts=settings.COUNTER.get("mounts", ()),
        )
    except ValueError as error:
        answer = Answer(400, [("Content-Type", "text/plain")], str(error).encode())
    return _said(answer)


def _said(answer: Answer) -> Any:
    if answer.chunks:
        response = StreamingHttpResponse(parts_of(answer), status=answer.status)
    else:
        response = HttpResponse(answer.body, status=answer.status)
    if not any(name.lower() == "content-type" for name, _ in answer.fields):
        del response["Content-Type"]
    for name, value in answer.fields:
        if name.lower() == "set-cookie":  # Django keeps these in a place of their own
            name_, _, rest = value.partition("=")
            response.set_cookie(name_, rest.partition(";")[0])
        else:
            response[name] = value
    return response


class Guard:
    """Authentication, for tests: `Authorization: Bearer NAME.TOKEN`."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response

    def __call__(self, request: Any) -> Any:
        caller = caller_of(request.headers.get("Authorization", ""))
        refusal = guarding(request.method, request.path, caller, counts())
        if refusal is not None:
            return _said(refusal)
        request.caller = caller
        return self._get_response(request)


def principal(request: Any) -> str | None:
    """The scope function for the middleware inside `Guard`."""
    return principal_of(request.caller)


urlpatterns = [re_path(r"^.*$", view)]
