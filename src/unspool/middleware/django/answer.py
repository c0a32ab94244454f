"""Answers: Django's and ours, one from the other.

    response_of(http)      what Django answered, as the gate remembers it; a stream as its fact
    http_of(response)      a refusal or a replay, as Django answers
    mark(http, …)          what the gate says beside what Django answered

Django's own answer goes on to the middlewares above as it is, with its cookies, its stream and its
`close`; only what is remembered of it is made here. Cookies are the first caller's (B4): whatever
is in them, and be it what no server can write, the answer stands, for the view has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.http import HttpResponse

from ...core.message import Field, Response
from ..wsgi_call import MoreComes


def response_of(http: Any) -> Response:
    """It must be rendered."""
    fields = [
        (str(name).encode("latin-1"), str(value).encode("latin-1"))
        for name, value in http.items()
        if str(name).lower() != "content-length"
    ]
    reason = str(http.reason_phrase).encode("latin-1", "replace")
    if getattr(http, "streaming", False):
        declared = str(http.get("Content-Length", ""))
        length = int(declared) if declared.isdigit() else -1
        return Response(http.status_code, reason, fields, b"", MoreComes(), length)
    return Response(http.status_code, reason, fields, bytes(http.content))


def http_of(response: Response) -> HttpResponse:
    reason = response.reason.decode("latin-1") or None
    http = HttpResponse(response.body, status=response.status, reason=reason)
    del http["Content-Type"]  # it has one by default, and the kept answer may have had none
    add_fields(http, response.fields)
    return http


def mark(http: Any, gated: Response, response: Response) -> None:
    """What the gate says beside what Django answered; it says each once, and so do we."""
    for name, value in gated.fields:
        if (name, value) not in response.fields:
            http[name.decode("latin-1")] = value.decode("latin-1")


def add_fields(http: Any, fields: Sequence[Field]) -> None:
    for name, value in fields:
        field, text = name.decode("latin-1"), value.decode("latin-1")
        http[field] = f"{http[field]}, {text}" if http.has_header(field) else text
