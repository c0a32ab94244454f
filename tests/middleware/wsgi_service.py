"""A WSGI application for real servers, with an effect that can be counted over processes.

gunicorn wsgi_service:app          SERVICE_FOLDER has the spool and the effects
python wsgi_service.py wsgiref|waitress FD     the same behind another server, on that socket
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unspool.middleware.wsgi import Idempotency

FOLDER = Path(os.environ.get("SERVICE_FOLDER", "."))


def order(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    with open(FOLDER / "effects", "ab", buffering=0) as effects:
        effects.write(body + b"\n")
    time.sleep(0.03)
    start_response("201 Created", [("Content-Type", "text/plain")])
    return [b"%d made " % os.getpid(), body]


def principal(environ: dict[str, Any]) -> str:
    return str(environ.get("HTTP_X_USER", ""))


app = Idempotency(order, spool=f"sqlite:///{FOLDER}/idem.db", scope=principal, survives="process")


def serve_wsgiref(listening: socket.socket) -> None:
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        request_queue_size = 64

    class Handler(WSGIRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = Server(listening.getsockname(), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.server_name, server.server_port = "127.0.0.1", listening.getsockname()[1]
    server.setup_environ()
    server.set_app(app)
    server.serve_forever()


def serve_waitress(listening: socket.socket) -> None:
    import waitress

    waitress.serve(app, sockets=[listening], threads=8, _quiet=True)


if __name__ == "__main__":
    given = socket.socket(fileno=int(sys.argv[2]))
    {"wsgiref": serve_wsgiref, "waitress": serve_waitress}[sys.argv[1]](given)
