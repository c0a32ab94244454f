"""Two senders of the same orders at the same times, and what each remembers of them.

    through = Sender(relay_port, resends=True)        a sender with a key
    straight = Sender(service_port, resends=False)    a plain client, as most are today
    await load([through, straight], rate=200, seconds=40, phase=…)

A sender with a key may send again without fear, and does so where nobody has taken responsibility:
the connection broke, no answer came, 503 (the relay declines, or is away) or 409 (the first one is
still being tried). Everything else it takes as the last word. A plain client takes everything as
the last word: it cannot know whether sending again would order twice.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import Callable, Sequence

from .tally import CROSSED, Ending, Order
from .wire import Broken, Pool, Reply, request

PATIENCE_S = 3.0
"""How long either sender waits for an answer."""
PAUSE_S = 0.3
"""Before sending again, where nobody said how long to wait."""
RESOLVE_S = 60.0
"""How long after the load orders may go on being sent again."""
NOT_TAKEN = (409, 503)
ITEMS = ("tea", "rope", "lamps", "ink", "salt", "nails", "sailcloth")


class Sender:
    def __init__(self, port: int, *, resends: bool, patience_s: float = PATIENCE_S) -> None:
        self.orders: list[Order] = []
        self._pool = Pool(port)
        self._resends = resends
        self._patience_s = patience_s

    async def send(self, order: Order, body: bytes) -> None:
        """Send one order until somebody has taken it, or as often as this sender does."""
        fields = [("Content-Type", "application/json"), ("Idempotency-Key", f'"{order.key}"')]
        data = request("POST", "/orders", body, fields)
        self.orders.append(order)
        while True:
            pause_s = PAUSE_S
            try:
                reply = await self._pool.exchange(data, patience_s=self._patience_s)
            except Broken as trouble:
                order.trouble = str(trouble)
                if not self._resends:
                    order.ending = Ending.FAILED
                    return
            else:
                if not self._resends or reply.status not in NOT_TAKEN:
                    _conclude(order, reply)
                    return
                order.trouble = f"status {reply.status}"
                pause_s = min(3.0, float(reply.fields.get("retry-after", PAUSE_S)))
            order.sent_again += 1
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))

    async def ask_receipts(self) -> None:
        """Ask each receipt what became of its order. The relay's word, beside the ledger's."""
        saved = [order for order in self.orders if order.receipt]

        async def ask(some: Sequence[Order]) -> None:
            for order in some:
                try:
                    reply = await self._pool.exchange(
                        request("GET", order.receipt), patience_s=self._patience_s
                    )
                except Broken as trouble:
                    order.state = str(trouble)
                    continue
                known = json.loads(reply.body) if reply.status == 200 else {}
                order.state = known.get("state", f"status {reply.status}")

        await asyncio.gather(*(ask(saved[n::8]) for n in range(8)))

    def close(self) -> None:
        self._pool.close()


def _conclude(order: Order, reply: Reply) -> None:
    """The last word on an order, as its sender understands it."""
    if reply.status == 202:
        order.ending = Ending.SAVED
        order.receipt = reply.fields.get("location", "")
    elif reply.status // 100 != 2:
        order.ending, order.trouble = Ending.FAILED, f"status {reply.status}"
    elif order.key.encode() not in reply.body:
        order.ending, order.trouble = Ending.FAILED, CROSSED
    else:
        order.ending = Ending.ANSWERED


async def load(
    senders: Sequence[Sender], *, rate: float, seconds: float, phase: Callable[[], int]
) -> None:
    """Send `rate` orders a second by each sender, whether or not earlier ones were answered.

    Returns when every sender has the last word on every order, or gives up asking for it.
    """
    loop = asyncio.get_running_loop()
    run = secrets.token_hex(3)
    begin = loop.time()
    sending: set[asyncio.Task[None]] = set()
    try:
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, begin + number / rate - loop.time()))
            wish = {"item": ITEMS[number % len(ITEMS)], "pieces": 1 + number % 9}
            body = json.dumps(wish).encode()
            for sender in senders:
                order = Order(f"{run}-{number:05d}", phase=phase())
                task = asyncio.create_task(sender.send(order, body))
                sending.add(task)
                task.add_done_callback(sending.discard)
        if sending:
            await asyncio.wait(sending, timeout=RESOLVE_S)
    finally:
        for task in list(sending):
            task.cancel()
