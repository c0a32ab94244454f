"""Atomic views: the rows of a view and the record of its answer, in one transaction.

    http = in_one_transaction(view, args, kwargs, passing, using=…)

The transaction is the outermost one of its database (a durable `atomic`); in it the view runs, its
answer is rendered, the record is written and fenced by the attempt (`commit`), and all of it is
committed or none. After a crash between that and the spool's own record the repeat finds the record
and is given the same answer; a stale owner's rows are undone.

What is not remembered is undone: an exception, a 5xx, what said `forget`, and what a repeat would
run again for another reason (401, 403). Such an answer is given all the same.

A request without a key is run in a transaction too, and has no record.

Bugs: of an answer that streams only its fact is in the record, and what its generator writes comes
after the commit. Other databases than `using` are not in the transaction. A middleware's
`process_template_response` comes too late, for the answer is rendered by then. The record is that
of the run, so such a view has none of its own to write: no `running.commit` within.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from django.db import connections, transaction

from ...core.fields import kept
from ...core.message import Response
from ...errors import Busy, Crossed, Reused, Stale
from ...problems import problem
from ..commit import VALUE_MAX_BYTES
from ..gate import RETRY_S
from .answer import http_of, response_of
from .passing import Passing, request_among

log: Final = logging.getLogger("unspool.middleware")

ROOM_BYTES: Final = 64 * 1024
"""For the head of an answer, in what a record may hold."""


class Undo(Exception):
    """Takes an answer out of a transaction that is to be undone."""

    def __init__(self, http: Any) -> None:
        super().__init__("this answer is not remembered")
        self.http = http


def in_one_transaction(
    view: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    passing: Passing,
    *,
    using: str | None,
) -> Any:
    alias = using or passing.using
    running = passing.running
    try:
        if running is None:
            with transaction.atomic(using=alias, durable=True):
                http = rendered(view(*args, **kwargs), args)
                if raised_within(http) or http.status_code >= 500:
                    raise Undo(http)
                return http
        with (
            transaction.atomic(using=alias, durable=True),
            running.commit(connections[alias]) as done,
        ):
            if done.known:
                log.info("it was done before: %s", running.key)
                raise Undo(http_of(done.value))
            http = rendered(view(*args, **kwargs), args)
            response = response_of(http)
            if raised_within(http) or not passing.gate.stands(response, running):
                raise Undo(http)
            done.value = worth_keeping(response)
            return http
    except Undo as undo:
        return undo.http
    except (Busy, Crossed, Stale) as error:
        log.warning("%s", error)
        running_of(passing).forget()
        return http_of(problem("running", retry_after_s=RETRY_S))
    except Reused as error:
        log.warning("%s", error)
        running_of(passing).forget()
        return http_of(problem("key-reused"))


def running_of(passing: Passing) -> Any:
    assert passing.running is not None, "only a keyed run has a record"
    return passing.running


def worth_keeping(response: Response) -> Response:
    """What the record holds of it: as the spool keeps it, and no more than there is room for."""
    whole = response.rest is None and len(response.body) <= VALUE_MAX_BYTES - ROOM_BYTES
    fields = kept(response.fields)
    if not whole:
        fields = (*fields, (b"Unspool-Body-Kept", b"?0"))
    return Response(
        response.status, response.reason, fields, response.body if whole else b"",
        length=response.length,
    )  # fmt: skip


def rendered(http: Any, args: tuple[Any, ...]) -> Any:
    """With its body made: what a template reads from the database is read in the transaction.

    An action of a viewset gives an answer that cannot be rendered before its view has finished it
    (`finalize_response` of Django REST framework): that is done here, and once more there.
    """
    if not hasattr(http, "render") or getattr(http, "is_rendered", True):
        return http
    request = request_among(args)
    context = getattr(request, "parser_context", None) or {}
    view: Any = context.get("view")
    if hasattr(view, "finalize_response") and not hasattr(http, "accepted_renderer"):
        http = view.finalize_response(request, http, *context["args"], **context["kwargs"])
    return http.render()


def raised_within(http: Any) -> bool:
    """Did an exception become this answer further in? (Django REST framework says so.)"""
    return getattr(http, "exception", False) is True
