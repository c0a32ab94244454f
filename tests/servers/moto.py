"""moto as an S3 for the tests that need one, on a free port, with nothing kept anywhere.

    with moto() as server:                  skips, or fails where CI is set, without moto
        server.bucket("orders")             make a bucket
        server.drop("orders", "parked/a.json", b"…")     as `aws s3 cp` would; None deletes
        server.url("orders/parked")         s3://orders/parked?endpoint=http://127.0.0.1:PORT
        server.environment                  credentials that it takes: any
        server.pause() · server.go_on()

It listens on loopback alone and ends with the tests, whatever becomes of them.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ports import free_port

from .process import end, missing, started, stop, until

START_S: Final = 90


class Moto:
    """A server that runs."""

    environment: Final = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }

    def __init__(self, port: int) -> None:
        self.port: Final = port
        self.endpoint: Final = f"http://127.0.0.1:{port}"
        self.process: Final[subprocess.Popen[bytes]] = started(
            [sys.executable, "-c", "from moto.server import main; main()",
             "-H", "127.0.0.1", "-p", str(port)]
        )  # fmt: skip

    def url(self, place: str) -> str:
        return f"s3://{place}?endpoint={self.endpoint}"

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        asked = urllib.request.Request(f"{self.endpoint}/{path}", body, method=method)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return bytes(answer.read())

    def bucket(self, name: str) -> None:
        self.ask("PUT", name)

    def drop(self, bucket: str, path: str, body: bytes | None) -> None:
        import obstore
        from obstore.store import S3Store

        store = S3Store(
            bucket, endpoint=self.endpoint, client_options={"allow_http": True},
            access_key_id="testing", secret_access_key="testing", region="us-east-1",
        )  # fmt: skip
        if body is None:
            obstore.delete(store, path)
        else:
            obstore.put(store, path, body)

    def names(self, bucket: str, prefix: str) -> list[str]:
        listed = self.ask("GET", f"{bucket}?prefix={prefix}").decode()
        return re.findall(r"<Key>([^<]*)</Key>", listed)

    def pause(self) -> None:
        stop(self.process.pid)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def moto() -> Iterator[Moto]:
    if importlib.util.find_spec("moto") is None:
        missing("moto", "pip install moto[server]")
    server = Moto(free_port())
    try:
        until(lambda: server.ask("GET", ""), server.process, within_s=START_S)
        yield server
    finally:
        end(server.process)
