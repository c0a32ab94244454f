"""What the happy path costs the disk: with `on-error` nothing at all. Seen by strace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CALLS = 50
DISK = "pwrite64,pwritev,fsync,fdatasync,ftruncate,openat,unlink,rename,pread64"
PROGRAM = """
import os, sys
from unspool import Client, Delivered
url, durability, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Client(url, outbox="outbox.db", durability=durability) as client:
    for begin in (True, False):
        for number in range(count):
            result = client.post("/orders", json=number, key=f"{begin}-{number}")
            assert isinstance(result, Delivered), result
        os.write(2, b"MARK")
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def seen(url: str, durability: str, folder: Path) -> list[str]:
    """What the program asked of the disk between its two marks."""
    if shutil.which("strace") is None:
        assert not os.environ.get("CI"), "strace is not installed"
        pytest.skip("strace is not installed")
    trace = folder / "trace"
    done = subprocess.run(
        ["strace", "-f", "-o", str(trace), "-e", f"trace={DISK},write", "-e", "signal=none",
         sys.executable, "-c", PROGRAM, url, durability, str(CALLS)],
        cwd=folder, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = trace.read_text("utf-8", "replace").splitlines()
    first, second = [at for at, line in enumerate(lines) if 'write(2, "MARK"' in line]
    wanted = re.compile(rf"^\d+ +({DISK.replace(',', '|')})\(")
    return [line for line in lines[first:second] if wanted.match(line)]


def test_on_error_the_happy_path_touches_no_disk(url: str, tmp_path: Path) -> None:
    """With an outbox that is open, under keys of the caller's: nothing written, read or synced."""
    assert seen(url, "on-error", tmp_path) == []


def test_before_it_is_on_disk_before_it_is_sent(url: str, tmp_path: Path) -> None:
    """The same program, to know that the test would see it."""
    lines = seen(url, "before", tmp_path)
    assert sum("pwrite" in line for line in lines) >= 2 * CALLS
    assert sum("sync(" in line for line in lines) >= CALLS
