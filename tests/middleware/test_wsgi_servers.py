"""The WSGI middleware behind real servers, with several processes on one spool."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers_kit import HERE, at_once, post, serving

GUNICORN = ["-m", "gunicorn", "--bind", "fd://{fd}", "--log-level", "warning", "wsgi_service:app"]
SERVERS = {
    "gunicorn sync": [[*GUNICORN, "--workers", "3"]],
    "gunicorn sync, preloaded": [[*GUNICORN, "--workers", "3", "--preload"]],
    "gunicorn gthread": [
        [*GUNICORN, "--workers", "2", "--worker-class", "gthread", "--threads", "4"]
    ],
    "waitress and wsgiref": [
        ["wsgi_service.py", "waitress", "{fd}"],
        ["wsgi_service.py", "wsgiref", "{fd}"],
    ],
}


def awake(ports: list[int]) -> None:
    """Two processes answer: one alone would prove nothing."""
    until = time.monotonic() + 60
    seen: set[bytes] = set()
    with ThreadPoolExecutor(8) as pool:
        while len(seen) < 2 and time.monotonic() < until:
            asked = [pool.submit(post, ports[n % len(ports)], body=b"awake") for n in range(8)]
            seen |= {one.result().body.split()[0] for one in asked}
    assert len(seen) > 1, "only one process answers"


@pytest.mark.parametrize("name", SERVERS)
def test_one_effect_for_each_key_over_several_processes(name: str, tmp_path: Path) -> None:
    """E2: repeats in parallel over workers and threads, on one spool: the counter says 1; all who
    waited got the same answer, byte for byte."""
    keys = [f"order-{number}" for number in range(12)]
    environ = {"SERVICE_FOLDER": str(tmp_path)}
    with serving(SERVERS[name], folder=tmp_path, environ=environ) as ports:
        awake(ports)
        found = at_once(ports, keys, each=8)
        chunked = [
            post(
                port, body=b"chunked", chunked=True,
                fields={"Idempotency-Key": "c", "X-User": "ann"},
            )
            for port in ports * 2
        ]  # fmt: skip
        nobody = post(ports[0], body=b"nobody", fields={"Idempotency-Key": "n"})
        unkeyed = [post(ports[0], body=b"unkeyed") for _ in range(2)]
    effects = Counter((tmp_path / "effects").read_text().split())
    assert {effects[key] for key in keys} == {1}
    for key in keys:
        assert {(got.status, got.body) for got in found[key]} == {(201, found[key][0].body)}
        assert sum("idempotent-replayed" not in got.fields for got in found[key]) == 1
        assert found[key][0].body.endswith(key.encode())
    assert nobody.status == 403
    assert [got.status for got in unkeyed] == [201, 201]
    assert effects["unkeyed"] == 2
    assert effects["nobody"] == 0
    ends_chunks = "wsgiref" not in name
    if ends_chunks:
        assert effects["chunked"] == 1
        assert {got.status for got in chunked} == {201}
    else:  # wsgiref says nowhere that a chunked body ends: refused there, run at waitress
        assert [got.status for got in chunked] == [201, 400, 201, 400]
        assert effects["chunked"] == 1
    logs = "".join(log.read_text() for log in tmp_path.glob("server-*.log"))
    assert "Traceback" not in logs, logs


FORKED = """
import os, sys
from wsgi_kit import call, environ_of
from wsgi_service import app

def ask(key):
    return call(app, environ_of(body=key.encode(), key=key, fields={"X-User": "ann"})).code

assert ask("before") == 201
pid = os.fork()
assert ask("before") == 201
codes = {ask("after"), ask("child" if pid == 0 else "parent")}
assert codes <= {201, 409}, codes
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_fork_after_use_carries_no_spool_over(tmp_path: Path) -> None:
    """The parent lets go of its SQLite before the fork; both open it anew, and the keys are one."""
    environ = {**os.environ, "SERVICE_FOLDER": str(tmp_path), "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-c", FORKED], env=environ, capture_output=True, text=True, check=False,
        timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    effects = (tmp_path / "effects").read_text().split()
    assert sorted(effects) == ["after", "before", "child", "parent"]
