"""What a door opens onto: one function from a request to an answer.

    response = await handler(request, caller)

`request` has its fields as they came (Host, Connection, Content-Length and all), and its body:
whole in `body` when it has at most `body_max_bytes`, else the first part in `body` and the
remainder in `rest`. `response` has its fields without framing; the door writes Content-Length or
chunks by itself, from `body`, `rest` and `length`. The handler never raises: whatever goes wrong is
an answer.

The door answers by itself, through `refusal`, what never becomes a request: malformed heads, both
Content-Length and Transfer-Encoding, heads too large or too slow. These lose nothing: the sender
still holds what it sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..core.message import Request, Response, Value


class Caller(Value, frozen=True):
    """Who is at the other end of a connection, as far as the connection tells."""

    peer: str
    """Address without port; `unix` for a unix socket."""
    scheme: str
    """http or https"""


class Handler(Protocol):
    async def __call__(self, request: Request, caller: Caller, /) -> Response: ...


class Express(Protocol):
    """What a handler may offer besides: an ordinary request answered without a task or a future.

    A relay forwards far more requests than it saves. For those the machinery of a coroutine costs
    as much as the forwarding; the door asks here first, and takes the other road when told to.
    """

    def begin(self, request: Request, caller: Caller, done: Callable[[Response], None], /) -> bool:
        """True: `done` gets the answer, exactly once, perhaps before this returns. False: nothing
        was begun, call the handler. `request.rest` must be None. Never raises."""
        ...


class Refusal(Protocol):
    def __call__(self, problem: str, detail: str, /) -> Response:
        """A problem document by its name in `problems.PROBLEMS`."""
        ...
