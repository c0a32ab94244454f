"""Watch orders survive a broken service: `./run demo`, or `python -m examples.demo`.

It starts an orders service, the relay in front of it, and a second, identical service without a
relay. Then it sends the same orders to both at the same times, and breaks both services in the
same ways at the same instants; it kills the relay too. At the end it counts in the services' own
ledgers.

    --seconds 44    how long orders are sent; then it waits until the spool is empty
    --rate 200      orders a second, by each road
    --plain         lines in place of the live table, as where there is no terminal
    --keep          keep the folder with the ledgers, the spool and the logs

Exit codes: 0 nothing was lost or doubled through the relay; 1 something was, or it could not go on
(the folder is kept, and its name is said); 130 interrupted;
141 nobody read on. NO_COLOR is honoured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from .chaos import SECONDS
from .processes import CannotGoOn, Family
from .show import Show
from .table import Ink, colours, screen

FILES_WANTED = 8192


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--keep", action="store_true")
    chosen = parser.parse_args()
    if chosen.seconds < 5 or not 1 <= chosen.rate <= 1000:
        parser.error("give at least 5 seconds, and a rate from 1 to 1000")
    return chosen


async def perform(chosen: argparse.Namespace, folder: Path) -> int:
    """The whole show. Whatever ends it, every process it has started ends with it."""
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, this.cancel)
    ink = Ink(coloured=colours())
    board = screen(ink, plain=chosen.plain)
    with Family(folder) as family:
        show = Show(family, board, ink, rate=chosen.rate, seconds=chosen.seconds)
        try:
            return await show.run()
        finally:
            board.leave()
            show.close()


def main() -> int:
    chosen = options()
    _more_files()
    folder = Path(tempfile.mkdtemp(prefix="unspool-demo-"))
    code = 1
    try:
        code = asyncio.run(perform(chosen, folder))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("\nInterrupted. Every process it had started is stopped.", flush=True)
        code = 130
    except CannotGoOn as error:
        print(f"\nThe demonstration cannot go on: {error}.", flush=True)
    except BrokenPipeError:
        # Nobody reads on. What is left to say would fail again, loudly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    finally:
        if chosen.keep or code == 1:
            print(f"\nLedgers, spool and logs are kept in {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def _more_files() -> None:
    """A slow service has many connections open. Some systems allow 256 files at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
