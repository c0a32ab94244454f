"""The examples with Celery and Huey: real workers, killed in the middle, messages sent twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from unspool.middleware.once import Once

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 100.0
"""On a machine that does ten other things a worker takes a minute to start, die and start again."""
pytestmark = pytest.mark.timeout(300)


def environ(shop: Path) -> dict[str, str]:
    return {**os.environ, "SHOP": str(shop), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@contextmanager
def program(shop: Path, module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, and everything it starts, for as long as the block lasts."""
    with (shop / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=shop, env=environ(shop), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def send(shop: Path, example: str, *orders: str) -> None:
    """As a sender would, in a process of its own."""
    send_ = "place.delay" if example == "celery_orders" else "place"
    calls = "; ".join(f"{send_}({{'id': {one!r}, 'item': 'tea'}})" for one in orders)
    code = f"from examples.{example} import place; {calls}"
    subprocess.run([sys.executable, "-c", code], env=environ(shop), cwd=shop, check=True)


def rows(file: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        return connection.execute(statement).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def until(shop: Path, count: int) -> list[tuple[object, ...]]:
    """The orders, once there are so many."""
    give_up_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_at:
        if (shop / "shop.db").exists():
            found = rows(shop / "shop.db", "SELECT id, attempt FROM orders ORDER BY id")
            if len(found) >= count:
                return found
        time.sleep(0.1)
    raise AssertionError((shop / "worker.log").read_text()[-4000:])


def test_celery(tmp_path: Path) -> None:
    """The worker process is killed between the charge and the order: Celery delivers the task
    again, and its sender sends it once more. One charge, one order, by the second attempt."""
    (tmp_path / "trip").touch()
    # While somebody else has the spool open, nobody can know that the claim's owner is dead: it is
    # busy for as long as its lease, and Celery tries again.
    other = Once()
    other.run(f"sqlite:///{tmp_path}/idem.db", "1", lambda: 1, scope="somebody else's")
    send(tmp_path, "celery_orders", "1")
    arguments = ("-A", "examples.celery_orders", "worker", "-P", "prefork", "-c", "1", "-l", "INFO")
    with program(tmp_path, "celery", *arguments, "--without-gossip", "--without-mingle"):
        assert until(tmp_path, 1) == [("1", 2)]
        send(tmp_path, "celery_orders", "1", "2")  # one at a time, in this order
        assert until(tmp_path, 2) == [("1", 2), ("2", 1)]
    assert len(rows(tmp_path / "bank.db", "SELECT key FROM charges")) == 2
    other.close()
    assert "WorkerLostError" in (tmp_path / "worker.log").read_text()


def test_huey(tmp_path: Path) -> None:
    """The consumer is killed within the transaction, then after it: it is started again, and the
    orders are sent again. One order each."""
    (tmp_path / "trip").touch()
    send(tmp_path, "huey_orders", "1", "1")
    consumer = ("huey.bin.huey_consumer", "examples.huey_orders.huey", "-w", "1", "-d", "0.05")
    with program(tmp_path, *consumer) as process:
        process.wait(timeout=PATIENCE_S)
    assert rows(tmp_path / "shop.db", "SELECT id FROM orders") == []
    send(tmp_path, "huey_orders", "1", "2", "2", "1")
    with program(tmp_path, *consumer):
        assert until(tmp_path, 2) == [("1", 2), ("2", 1)]
