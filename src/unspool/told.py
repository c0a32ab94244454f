"""Told: whom a committer tells, in place of a future: what follows of a result is an answer.

    custody.find_for(Told(found, complaint, done), key)

A request has one answer. Told twice, its connection would be off by one for ever (I10).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .core.message import Response

_Done = Callable[[Response], None]


class Told:
    __slots__ = ("_done", "_heard", "_otherwise", "_then")

    def __init__(
        self,
        then: Callable[[Any], Response | None],
        otherwise: Callable[[Exception], Response | None],
        done: _Done,
    ) -> None:
        """Either may give None: it goes on, and will be done by another way."""
        self._then = then
        self._otherwise = otherwise
        self._done = done
        self._heard = False

    def done(self) -> bool:
        return self._heard

    def set_result(self, result: Any) -> None:
        self._heard = True
        try:
            response = self._then(result)
        except Exception as error:
            response = self._otherwise(error)
        if response is not None:
            self._done(response)

    def set_exception(self, error: Exception) -> None:
        self._heard = True
        response = self._otherwise(error)
        if response is not None:
            self._done(response)

    def cancel(self) -> None:
        """The loop is going down, and nobody knows what became of it."""
