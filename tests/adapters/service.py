"""A service on a socket, which does what the path says and remembers what it was asked.

with service() as one:  one.url · one.asked · one.effects
"""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

SLOW_S = 30.0


class Seen(NamedTuple):
    method: str
    path: str
    fields: dict[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_any(self) -> None:
        body = self._body()
        fields = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Seen(self.command, self.path, fields, body))
        verb = self.path.split("?")[0].strip("/").split("/")[0]
        getattr(self, f"on_{verb}", self.on_orders)(fields, body)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_any

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def says(self, status: int, body: bytes = b"", *fields: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # --- what the paths do -------------------------------------------------------------------

    def on_orders(self, fields: dict[str, str], body: bytes) -> None:
        told = {"body": body.decode("latin-1"), "type": fields.get("content-type", "")}
        self.says(201, json.dumps(told).encode(), ("Content-Type", "application/json"))

    def on_wrong(self, *_: Any) -> None:
        self.says(422, b'{"why":"no tea"}', ("Content-Type", "application/json"))

    def on_busy(self, *_: Any) -> None:
        self.says(503, b"busy", ("Retry-After", "60"))

    def on_gone(self, *_: Any) -> None:
        """The connection ends, and nobody knows what has happened."""
        self.close_connection = True

    def on_slow(self, *_: Any) -> None:
        self.server.closing.wait(SLOW_S)
        self.close_connection = True

    def on_cookies(self, *_: Any) -> None:
        self.says(200, b"", ("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2; Path=/"))

    def on_zipped(self, *_: Any) -> None:
        self.says(200, gzip.compress(b"tea" * 1000), ("Content-Encoding", "gzip"))

    def on_large(self, *_: Any) -> None:
        self.says(200, b"x" * 3_000_000)

    def on_chunks(self, *_: Any) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"3\r\ntea\r\n" * 3 + b"0\r\n\r\n")

    def on_moved(self, *_: Any) -> None:
        self.says(307, b"", ("Location", "/orders/moved"))

    def on_see(self, *_: Any) -> None:
        self.says(303, b"", ("Location", "/echo"))

    def on_elsewhere(self, *_: Any) -> None:
        self.says(302, b"", ("Location", self.server.elsewhere + "/echo"))

    def on_empty(self, *_: Any) -> None:
        self.send_response(204)
        self.end_headers()

    def on_guarded(self, fields: dict[str, str], body: bytes) -> None:
        if fields.get("authorization", "").startswith("Digest "):
            self.on_orders(fields, body)
        else:
            challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
            self.says(401, b"", ("WWW-Authenticate", challenge))

    def on_echo(self, fields: dict[str, str], body: bytes) -> None:
        told = {"method": self.command, "path": self.path, "fields": fields}
        self.says(200, json.dumps(told).encode(), ("Content-Type", "application/json"))

    def log_message(self, *_: object) -> None:
        pass


class Service(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """Of the usual five a sixth would wait for a second, and for three, until it is taken."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[Seen] = []
        self.elsewhere = ""
        self.closing = threading.Event()

    def handle_error(self, *_: Any) -> None:
        """Who does not wait for an answer is no error of the service."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def keys(self, method: str = "POST") -> list[str]:
        return [one.fields.get("idempotency-key", "") for one in self.asked if one.method == method]


@contextlib.contextmanager
def service() -> Iterator[Service]:
    found = Service()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        found.closing.set()
        found.shutdown()
        thread.join()
        found.server_close()
