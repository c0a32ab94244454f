"""What a connection knows of the world: where it goes afterwards, and who hears its answer."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from ..core.message import Answer
from ..outgoing import Outgoing
from .limits import Limits

if TYPE_CHECKING:
    from .connection import Connection


class Home(Protocol):
    """Where a connection goes when its work is done."""

    limits: Limits
    where: str
    idle: list[Connection]
    waiting: deque[Any]
    outgoing: Outgoing

    def put(self, connection: Connection, /) -> None: ...
    def drop(self, connection: Connection, /) -> None: ...


class Hears(Protocol):
    """Who waits for an answer: a future, or somebody who wants it at once."""

    def done(self) -> bool: ...
    def set_result(self, answer: Answer, /) -> None: ...
