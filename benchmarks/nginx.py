"""nginx, twice: as the service behind the relay, and as the proxy it is compared with.

    with upstream(bench, port) as service: service.count()    answers 200 to everything, and counts
    with proxy(bench, to=port) as nginx: nginx.port           proxy_pass, keepalive, one worker

The service is the fastest thing that speaks HTTP, so that what is measured is what stands before
it. It shares its core with the load generator. `count` asks stub_status, whose own requests are
taken off; it counts requests when they come in.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from .bench import Bench
from .process import Failed, Process, fetch, free_port

ANSWER: Final = b"delivered\n"
"""The body of every answer of the service."""

_COMMON: Final = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    default_type text/plain;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {inside}
}}
"""

_SERVICE: Final = """
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ return 200 "delivered\\n"; }}
        location = /nginx-count {{ stub_status; }}
    }}
"""

_PROXY: Final = """
    upstream service {{
        server 127.0.0.1:{to};
        keepalive 256;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            client_max_body_size 2m;
        }}
    }}
"""


class Nginx(Process):
    def __init__(self, bench: Bench, inside: str, *, port: int, core: int) -> None:
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise Failed("nginx is not installed")
        self.port = port
        self._asked = 0
        folder = bench.new_folder("nginx")
        config = folder / "nginx.conf"
        config.write_text(_COMMON.format(folder=folder, inside=inside))
        log = folder / "error.log"
        command = [program, "-p", str(folder), "-e", str(log), "-c", str(config)]
        super().__init__(command, cores={core}, log=Path(folder, "output.log"))
        try:
            self.wait_listening(port)
        except BaseException:
            self.stop()
            raise

    def count(self) -> int:
        """Requests it has had, these questions not counted. Only the service is asked."""
        _, _, body = fetch(self.port, "/nginx-count")
        self._asked += 1
        found = re.search(rb"\n\s*\d+ \d+ (\d+)", body)
        if found is None:
            raise Failed("nginx was built without stub_status")
        return int(found[1]) - self._asked


def upstream(bench: Bench, port: int = 0) -> Nginx:
    port = port or free_port()
    return Nginx(bench, _SERVICE.format(port=port), port=port, core=bench.load_core)


def proxy(bench: Bench, *, to: int) -> Nginx:
    port = free_port()
    return Nginx(bench, _PROXY.format(port=port, to=to), port=port, core=bench.measured_core)
