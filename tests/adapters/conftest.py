from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ports import free_port

START_S = 60.0


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A relay whose service is down."""
    folder: Path = tmp_path_factory.mktemp("relay")
    port = free_port()
    nobody = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "unspool", "serve", "--to", nobody, "--listen",
         f"127.0.0.1:{port}", "--spool", f"sqlite:///{folder}/s.db"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/_unspool/health", timeout=5
                ).close()
                break
            except OSError:
                assert process.poll() is None, "it ended"
                assert time.monotonic() < until, "it does not start"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(START_S)
