"""How a call ends: results made of what came back, and exceptions with all that is known.

answered(…) · unknown(…)                  results of an answer, and of none that is certain
undelivered(request, why, carried)        for what nobody owns; the request is attached
fall_back(…) · fell_back(…)               the fallback plan, and its result
reused(request) · no_outbox() · silent() · closed() · unusable(…)
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from ..core.message import Response as Answered
from ..errors import Misconfigured, Unavailable, Undelivered
from .passing import Carried
from .request import Request
from .results import Delivered, FellBack, Rejected, Try, Unknown, response_of


def answered(request: Request, answer: Answered, tries: tuple[Try, ...]) -> Delivered | Rejected:
    kind = Rejected if answer.status // 100 in (4, 5) else Delivered
    return kind(response_of(answer), request.key, tries)


def unknown(request: Request, carried: Carried) -> Unknown:
    answer = carried.answer
    response = response_of(answer) if isinstance(answer, Answered) else None
    return Unknown(request, carried.why, request.key, carried.tries, response)


def undelivered(request: Request, why: str, carried: Carried | None = None) -> Undelivered:
    """The exception for what nobody owns, with everything that is known."""
    what = f"{request.method} {request.target}"
    named = f" (key {request.key})" if request.key else ""
    last = carried.tries[-1] if carried and carried.tries else None
    tail = f" Last: {last.cause} at {last.where}." if last else ""
    maybe = carried is not None and carried.maybe
    where = "It is still yours: send it again, under the same key"
    if request.kind.safe:
        where = "It only asked, and may be sent again"
    elif maybe:
        where = "An attempt may have had its effect: send it again only under this key"
    error = Undelivered(f"{what}{named} was not delivered: {why.rstrip('.')}.{tail} {where}.")
    error.request = request
    if carried is not None:
        error.tries = carried.tries
        error.maybe_applied = maybe
        if isinstance(carried.answer, Answered):
            error.response = response_of(carried.answer)
    return error


async def fall_back(fallback: Callable[..., Any], request: Request, error: Undelivered) -> FellBack:
    """The fallback plan, in a thread if it blocks."""
    try:
        if inspect.iscoroutinefunction(fallback):
            value = await fallback(request)
        else:
            value = await asyncio.to_thread(fallback, request)
            if inspect.isawaitable(value):
                value = await value
    except Exception as trouble:
        raise fell_through(error, trouble) from trouble
    return fell_back(request, value, error)


def fell_back(request: Request, value: Any, error: Undelivered) -> FellBack:
    tries = tuple(one for one in error.tries if isinstance(one, Try))
    return FellBack(value, request.key, tries)


def fell_through(error: Undelivered, trouble: Exception) -> Undelivered:
    """The fallback plan failed, too."""
    new = Undelivered(
        f"{error} The fallback plan failed as well: {type(trouble).__name__}: {trouble}"
    )
    new.request, new.response = error.request, error.response
    new.tries, new.maybe_applied = error.tries, error.maybe_applied
    return new


def silent() -> Unavailable:
    return Unavailable(
        "The outbox does not answer. What waits in it is kept, and is sent when it answers again."
        " See what waits: unspool outbox list"
    )


def closed() -> Misconfigured:
    return unusable("it is closed", "Make another: AsyncClient(…)")


def no_outbox() -> Misconfigured:
    return Misconfigured(
        'This client has no outbox, so nothing of it waits. Give it one: outbox="sqlite:///outbox.db"'
    )


def unusable(why: str, advice: str) -> Misconfigured:
    return Misconfigured(f"This client cannot be used: {why}. Nothing was sent. {advice}")
