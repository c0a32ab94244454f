from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A relay whose service is down."""
    folder: Path = tmp_path_factory.mktemp("relay")
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "unspool", "serve", "--to", "http://127.0.0.1:1", "--listen",
         f"127.0.0.1:{port}", "--spool", f"sqlite:///{folder}/s.db"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/_unspool/health", timeout=1
                ).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
