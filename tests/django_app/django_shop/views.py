"""Views of every kind."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from unspool.middleware.django import idempotent

from . import crash
from .models import Order


def by_field(request: Any) -> str:
    """Who is asking, for tests over real sockets."""
    return str(request.META.get("HTTP_X_USER", ""))


def placed(request: Any) -> JsonResponse:
    order = Order.objects.create(item=request.POST.get("item", ""))
    http = JsonResponse({"order": order.pk}, status=201)
    http["Location"] = f"/orders/{order.pk}"
    http.set_cookie("last", str(order.pk))
    return http


def exempt(view: Any) -> Any:
    """`csrf_exempt` of Django 4.2 hides that a view is asynchronous."""
    view.csrf_exempt = True
    return view


@csrf_exempt
def create(request: Any) -> HttpResponse:
    return placed(request)


def guarded(request: Any) -> HttpResponse:
    """CSRF holds here."""
    return placed(request)


def meets(request: Any, kind: str) -> HttpResponse:
    """What may come of a view that has already made its order."""
    placed(request)
    if kind == "raises":
        raise LookupError("no such thing")
    if kind == "404":
        raise Http404("gone")
    if kind == "403":
        raise PermissionDenied
    if kind == "effect":
        request.unspool.effect()
        raise LookupError
    if kind == "forget" and request.unspool:
        request.unspool.forget()
    crash.now(request, "before")
    if kind == "marked":
        marks = {"Idempotency-Retention": "answer=1, key=2", "Idempotent-Replayed": "true"}
        return HttpResponse("of another's", headers=marks)
    if kind == "cookie":
        http = HttpResponse("made", status=201)
        http.set_cookie("name", "\u017dofie")
        return http
    return HttpResponse(kind, status=int(kind[7:]) if kind.startswith("answer") else 200)


plain = csrf_exempt(meets)
atomic = csrf_exempt(idempotent(atomic=True)(meets))


@require_POST
@idempotent(required=True)
@csrf_exempt
def required(request: Any) -> HttpResponse:
    return placed(request)


@idempotent(methods={"PUT"}, body_max_bytes=10)
def put(request: Any) -> HttpResponse:
    return placed(request)


@csrf_exempt
@idempotent(atomic=True)
def template(request: Any) -> Any:
    placed(request)
    return TemplateResponse(request, "order", {"n": Order.objects.count})


@csrf_exempt
def upload(request: Any) -> HttpResponse:
    placed(request)
    file = request.FILES["file"]
    return HttpResponse(f"{request.POST['note']} {file.name} {file.size}")


@csrf_exempt
@idempotent(atomic=True)
def stream(request: Any) -> StreamingHttpResponse:
    placed(request)
    return StreamingHttpResponse(iter([b"a" * 10, b"b" * 10]), content_type="text/plain")


@csrf_exempt
def sessions(request: Any) -> HttpResponse:
    request.session["count"] = request.session.get("count", 0) + 1
    return HttpResponse(str(request.session["count"]))


@exempt
@idempotent(required=True)
async def later(request: Any) -> HttpResponse:
    item = request.POST.get("item", "")
    await asyncio.sleep(float(request.META.get("HTTP_X_SLEEP", "0.03")))
    order = await Order.objects.acreate(item=item)
    return JsonResponse({"order": order.pk, "by": os.getpid()}, status=201)


@csrf_exempt
@idempotent(atomic=True)
def slowly(request: Any) -> HttpResponse:
    http = placed(request)
    time.sleep(0.03)
    return http


@method_decorator(csrf_exempt, name="dispatch")
class ByMethod(View):
    @idempotent(required=True, atomic=True)
    def post(self, request: Any) -> HttpResponse:
        return placed(request)

    def patch(self, request: Any) -> HttpResponse:
        return placed(request)


@method_decorator([csrf_exempt, idempotent(required=True, atomic=True)], name="dispatch")
class ByDispatch(View):
    def post(self, request: Any) -> HttpResponse:
        return placed(request)


@method_decorator([csrf_exempt, idempotent], name="dispatch")
class Nested(View):
    @idempotent
    def post(self, request: Any) -> HttpResponse:
        return placed(request)


class Rendered(HttpResponse):
    """An answer that wants to be finished by its view before it can be rendered."""

    is_rendered = False

    def render(self) -> Rendered:
        assert self.accepted_renderer == "json"  # type: ignore[attr-defined]
        self.content, self.is_rendered = b"rendered", True
        return self


class ViewSet:
    """As those of Django REST framework, by its outside."""

    def finalize_response(self, request: Any, http: Any, *_: Any, **__: Any) -> Any:
        http.accepted_renderer = "json"
        return http

    @idempotent(required=True, atomic=True)
    def create(self, request: Any) -> HttpResponse:
        placed(request)
        return Rendered()

    @classmethod
    def as_view(cls, actions: dict[str, str]) -> Any:
        def view(request: Any, *args: Any, **kwargs: Any) -> Any:
            self = cls()
            request.parser_context = {"view": self, "args": args, "kwargs": kwargs}
            handler = getattr(self, actions[request.method.lower()])
            return self.finalize_response(request, handler(request, *args, **kwargs))

        view.cls, view.actions = cls, actions  # type: ignore[attr-defined]
        return csrf_exempt(view)


def careless(view: Any) -> Any:
    """A decorator that hides what it decorates."""

    def wrapped(request: Any) -> Any:
        return view(request)

    return wrapped


hidden = csrf_exempt(careless(idempotent(required=True)(placed)))
partial = csrf_exempt(functools.partial(placed))
