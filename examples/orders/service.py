"""The service: POST /orders takes an order, once for each Idempotency-Key.

    POST /orders  Idempotency-Key: "k1"  {"item": "tea", "pieces": 2}
      -> 201 {"order": 17, "key": "k1", "item": "tea", "pieces": 2}

The same key again: the same answer and no second order. The same key with another order: 422.
This is the half of the bargain that no relay can keep for a service. A relay can promise that a
request arrives *at least* once; that it counts once is for the service to say, which knows the key.

One thread, and no `await` between looking a key up and writing it down: two requests with one key
cannot both find it free.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from .ledger import Effect, Ledger
from .weather import RETRY_AFTER_S, SLOW_S, Weather
from .web import Answer, Request, read, reset, said

STOP_S = 1.0
"""How long a service that was asked to stop finishes what it has begun."""

Handler = Callable[[Request], Awaitable[Answer | None]]


class Orders:
    def __init__(self, ledger: Ledger) -> None:
        self.weather = Weather.FINE
        self._ledger = ledger
        self._busy = 0
        self._errors = 0

    # --- what it is for -----------------------------------------------------------------------

    def place(self, request: Request) -> Answer:
        """Take an order, or say again what was said of it."""
        key = request.fields.get("idempotency-key", "").strip('"')
        if not key:
            return said(400, {"error": "send an Idempotency-Key"})
        try:
            wish = json.loads(request.body)
            item, pieces = str(wish["item"]), int(wish.get("pieces", 1))
        except (ValueError, TypeError, KeyError, AttributeError):
            return said(400, {"error": 'send an order: {"item": "tea", "pieces": 2}'})
        effect = self._ledger.find(key)
        if effect is None:
            try:
                effect = self._ledger.write(key, item, pieces)
            except OSError as error:
                return said(500, {"error": str(error)})
        if (effect.item, effect.pieces) != (item, pieces):
            return said(422, {"error": "this key was used for another order"})
        return _taken(effect)

    # --- and what becomes of it in bad weather ------------------------------------------------

    async def handle(self, request: Request) -> Answer | None:
        """The answer to a request; None: the connection breaks instead."""
        if (request.method, request.path) != ("POST", "/orders"):
            return said(404, {"error": "POST /orders is all there is"})
        weather = self.weather
        if weather is Weather.ERROR:
            self._errors += 1
            if self._errors % 2:
                self.place(request)
            return said(500, {"error": "something is wrong in here"})
        if weather is Weather.UNAVAILABLE:
            return said(503, {"error": "not now"})
        if weather is Weather.RETRY_AFTER:
            return said(503, {"error": "not now"}, Retry_After=str(RETRY_AFTER_S))
        if weather is Weather.HANG:
            await asyncio.Event().wait()
        if weather is Weather.SLOW:
            await asyncio.sleep(SLOW_S)
        answer = self.place(request)
        return None if weather is Weather.RESET else answer

    async def forecast(self, request: Request) -> Answer:
        """The second door: what weather is it, and what shall it be?"""
        if request.method == "POST":
            try:
                self.weather = Weather(request.body.decode().strip())
            except ValueError:
                return said(400, {"error": f"give one of: {', '.join(Weather)}"})
        return said(200, {"weather": self.weather, "others": list(Weather)})

    # --- doors --------------------------------------------------------------------------------

    async def run(self, *, port: int, weather_port: int, stop: asyncio.Event) -> None:
        """Serve until `stop`; then take no more, and finish what was begun."""
        doors = [
            await asyncio.start_server(self._door(handler), "127.0.0.1", number, backlog=1024)
            for handler, number in ((self.handle, port), (self.forecast, weather_port))
            if number
        ]
        await stop.wait()
        for door in doors:
            door.close()
        give_up_at = asyncio.get_running_loop().time() + STOP_S
        while self._busy and asyncio.get_running_loop().time() < give_up_at:
            await asyncio.sleep(0.01)

    def _door(
        self, handler: Handler
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while (request := await read(reader)) is not None:
                    self._busy += 1
                    try:
                        answer = await handler(request)
                        if answer is None:
                            reset(writer)
                            return
                        writer.write(answer.encoded())
                        await writer.drain()
                    finally:
                        self._busy -= 1
            except (ConnectionError, asyncio.CancelledError):
                pass  # the sender is gone, or the service ends; what was done stays done
            except ValueError as error:
                writer.write(said(400, {"error": str(error)}, Connection="close").encoded())
            finally:
                writer.close()

        return connection


def _taken(effect: Effect) -> Answer:
    document = {
        "order": effect.number,
        "key": effect.key,
        "item": effect.item,
        "pieces": effect.pieces,
    }
    return said(201, document, Location=f"/orders/{effect.number}")
