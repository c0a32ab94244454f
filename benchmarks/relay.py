"""The relay under test: `unspool serve` with a spool of its own, alone on its core.

    with Relay(bench, to=port, name="accept") as relay:
        relay.port, relay.health(), relay.waiting(), relay.rss_bytes()

Settings are the defaults, but for what a row names in `extra` and the table's note says. A new
folder each time: no run works on what another has left.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import apsw

from .bench import Bench
from .process import Failed, Process, fetch, free_port

START_S = 20.0


def program() -> list[str]:
    """`unspool` of the environment that runs this."""
    found = shutil.which("unspool", path=str(Path(sys.executable).parent))
    found = found or shutil.which("unspool")
    if found is None:
        raise Failed("unspool is not installed here: pip install -e .")
    return [found]


class Relay(Process):
    def __init__(
        self, bench: Bench, *, to: int, extra: tuple[str, ...] = (), spool: Path | None = None
    ) -> None:
        """`spool`: a file that is there already, and stays."""
        self.port = free_port()
        self.folder = bench.new_folder("relay")
        self.spool = spool or self.folder / "spool.db"
        super().__init__(
            [
                *program(), "serve",
                "--to", f"http://127.0.0.1:{to}",
                "--listen", f"127.0.0.1:{self.port}",
                "--spool", f"sqlite:///{self.spool}",
                "--log-level", "warning",
                *bench.extra,
                *extra,
            ],
            cores={bench.measured_core},
            log=self.folder / "output.log",
            folder=self.folder,
        )  # fmt: skip
        try:
            self.wait_listening(self.port, START_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def health(self) -> dict[str, Any]:
        _, _, body = fetch(self.port, "/_unspool/health")
        said: dict[str, Any] = json.loads(body)
        return said

    def in_spool(self) -> dict[int, int]:
        """Entries by state, read from the file itself, not believed from the relay."""
        reading = apsw.Connection(str(self.spool), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            rows = reading.execute(
                "SELECT state, count(*) FROM message WHERE destination <> '' GROUP BY state"
            )
            return {int(str(state)): int(str(count)) for state, count in rows}
        finally:
            reading.close()
