"""The show: who plays, in which order, and how long the audience waits at the end.

show = Show(family, board, ink, rate=200, seconds=40)
code = await show.run()

    senders ──┬── relay ──── service 1 ── ledger 1
              └───────────── service 2 ── ledger 2         the same orders, the same weather
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from ..orders.ledger import Follower
from . import report
from .chaos import PHASES, SECONDS, Stage
from .processes import CannotGoOn, Child, Family, free_ports
from .sender import Sender, load
from .table import Ink, Row, Screen, View
from .tally import Order, Tally, tally
from .wire import Broken, Pool, request

ROOT = Path(__file__).resolve().parents[2]
TICK_S = 0.25
DRAIN_S = 90.0
"""The longest wait for the spool to be empty."""
RELAY_FLAGS = (
    ("--first-byte-ms", "1s", "a service that thinks for longer is not waited for"),
    ("--survives", "process", "the spool's folder is temporary, perhaps in memory"),
)
"""What is not at its default here, and why."""


class Show:
    def __init__(
        self, family: Family, board: Screen, ink: Ink, *, rate: float, seconds: float
    ) -> None:
        self._family = family
        self._board = board
        self._ink = ink
        self._rate = rate
        self._seconds = seconds
        ports = free_ports(5)
        self._services = [self._service(n, ports[n], ports[2 + n]) for n in (0, 1)]
        self._ledgers = [Follower(self._ledger(n)) for n in (0, 1)]
        self._relay = self._make_relay(ports[4], to=ports[0])
        self._through = Sender(ports[4], resends=True)
        self._straight = Sender(ports[1], resends=False)
        self._health = Pool(ports[4])
        self._waiting: int | None = None
        self._phase = 0
        self._phases_at: list[float] = []
        self._began_at = asyncio.get_running_loop().time()
        self._stage = Stage(
            services=self._services,
            forecasts=[Pool(port) for port in ports[2:4]],
            relay=self._relay,
            say=lambda words: self._board.say(words, self._view()),
            waiting=lambda: self._waiting,
        )

    # --- who plays ----------------------------------------------------------------------------

    def _ledger(self, number: int) -> Path:
        return self._family.folder / f"service-{number + 1}.ledger"

    def _service(self, number: int, port: int, weather_port: int) -> Child:
        argv = [sys.executable, "-m", "examples.orders", "--port", str(port)]
        argv += ["--weather-port", str(weather_port), "--ledger", str(self._ledger(number))]
        name = f"service {number + 1}"
        return self._family.child(name, argv, port=port, cwd=ROOT, environ=os.environ)

    def _make_relay(self, port: int, *, to: int) -> Child:
        """`unspool serve`, with nobody's settings but ours."""
        folder = self._family.folder
        settings = folder / "unspool.toml"
        settings.touch()
        environ = {k: v for k, v in os.environ.items() if not k.startswith("UNSPOOL_")}
        flags = ["--to", f"http://127.0.0.1:{to}", "--listen", f"127.0.0.1:{port}"]
        flags += ["--spool", f"sqlite:///{folder / 'spool.db'}", "--config", str(settings)]
        for flag, value, _why in RELAY_FLAGS:
            flags += [flag, value]
        argv = [sys.executable, "-m", "unspool", "serve", *flags]
        return self._family.child("relay", argv, port=port, cwd=folder, environ=environ)

    # --- the order of the evening -------------------------------------------------------------

    async def run(self) -> int:
        """Everything, from the first process to the last line. The exit code."""
        report.introduce(
            self._ink,
            rate=self._rate,
            seconds=self._seconds,
            to=self._services[0].port,
            flags=RELAY_FLAGS,
        )
        await self._stage.start_services()
        await self._relay.start()
        self._waiting = await self._ask_relay()
        self._began_at = self._now()
        watching = asyncio.create_task(self._watch())
        acting = asyncio.create_task(self._act())
        try:
            await _first_trouble(acting, watching)
        finally:
            for task in (watching, acting):
                task.cancel()
            await asyncio.gather(watching, acting, return_exceptions=True)
        await self._through.ask_receipts()
        view = self._view()
        self._board.show(view)
        self._board.leave()
        through, straight = view.total.through, view.total.straight
        report.conclude(
            self._ink, through, straight, orders=self._through.orders, waiting=self._waiting
        )
        if not through.clean:
            self._write_down()
            return 1
        report.invite(self._ink)
        return 0

    async def _act(self) -> None:
        """Send and break at the same time, and then wait until the spool is empty."""
        sending = asyncio.create_task(
            load(
                [self._through, self._straight],
                rate=self._rate,
                seconds=self._seconds,
                phase=lambda: self._phase,
            )
        )
        breaking = asyncio.create_task(self._break())
        try:
            await asyncio.gather(sending, breaking)
        finally:
            sending.cancel()
            breaking.cancel()
        self._stage.say("no more orders are sent; what is left in the spool is delivered")
        give_up_at = self._now() + DRAIN_S
        while not self._drained():
            if self._now() > give_up_at:
                self._stage.say(f"the spool is not empty after {DRAIN_S:g} s")
                return
            await asyncio.sleep(TICK_S / 2)
        self._stage.say("the spool is empty")

    async def _break(self) -> None:
        for number, phase in enumerate(PHASES):
            self._phase = number
            self._phases_at.append(self._elapsed())
            await phase.play(self._stage, pace=self._seconds / SECONDS)

    def _drained(self) -> bool:
        """Nothing waits, by the relay's word and by the ledger."""
        saved = self._view().total.through
        return self._waiting == 0 and saved.delivered_later == saved.saved

    async def _watch(self) -> None:
        """Ask the relay how much waits, look whether everybody lives, and draw."""
        while True:
            self._waiting = await self._ask_relay()
            if fallen := self._family.fallen():
                raise CannotGoOn(f"the {fallen.name} ended by itself{fallen.last_words()}")
            self._board.show(self._view())
            await asyncio.sleep(TICK_S)

    async def _ask_relay(self) -> int | None:
        try:
            reply = await self._health.exchange(request("GET", "/_unspool/health"), patience_s=1.0)
        except Broken:
            return None
        waiting = json.loads(reply.body).get("backlog")
        return waiting if isinstance(waiting, int) else None

    # --- how it stands ------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _elapsed(self) -> float:
        return self._now() - self._began_at

    def _view(self) -> View:
        through, straight = (follower.look().counts for follower in self._ledgers)
        by_phase: list[tuple[list[Order], list[Order]]] = [([], []) for _ in PHASES]
        for road, sender in enumerate((self._through, self._straight)):
            for order in sender.orders:
                by_phase[order.phase][road].append(order)
        rows = [
            Row(at_s, phase.title, tally(mine, through), tally(theirs, straight))
            for at_s, phase, (mine, theirs) in zip(self._phases_at, PHASES, by_phase, strict=False)
        ]
        at_s = self._elapsed()
        total = Row(at_s, "all", self._sum(0, through), self._sum(1, straight))
        return View(at_s=at_s, total=total, rows=rows, waiting=self._waiting)

    def _sum(self, road: int, effects: dict[str, int]) -> Tally:
        return tally((self._through, self._straight)[road].orders, effects)

    def _write_down(self) -> None:
        """What the senders remember, for whoever looks for the reason."""
        with (self._family.folder / "orders.jsonl").open("w") as file:
            for order in self._through.orders:
                known = {name: getattr(order, name) for name in order.__slots__}
                file.write(json.dumps({**known, "ending": order.ending.name}) + "\n")

    def close(self) -> None:
        for pool in (self._health, *self._stage.forecasts):
            pool.close()
        self._through.close()
        self._straight.close()


async def _first_trouble(acting: asyncio.Task[None], watching: asyncio.Task[None]) -> None:
    """Until the act is over, or one of the two has failed."""
    done, _pending = await asyncio.wait({acting, watching}, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
