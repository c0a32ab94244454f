"""Run the orders service.

    python -m examples.orders                            port 8000, ledger ./orders.ledger
    curl -i -H 'Idempotency-Key: "k1"' -d '{"item": "tea"}' http://127.0.0.1:8000/orders
    curl -d 503 http://127.0.0.1:8001/weather            make it misbehave; `fine` mends it

SIGTERM and Ctrl-C stop it as a deploy does: it takes no more and finishes what it has begun.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from .ledger import Ledger
from .service import Orders


async def serve(port: int, weather_port: int, ledger: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Orders(Ledger(ledger)).run(port=port, weather_port=weather_port, stop=stop)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.orders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--weather-port", type=int, default=8001, help="0: no second door")
    parser.add_argument("--ledger", type=Path, default=Path("orders.ledger"))
    chosen = parser.parse_args()
    asyncio.run(serve(chosen.port, chosen.weather_port, chosen.ledger))


if __name__ == "__main__":
    main()
