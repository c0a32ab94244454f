"""Load: wrk with one thread on its own core, and what it counted.

    load(bench, port, script, seconds, tag)      -> Load
    SCRIPTS                                        plain | keyed | repeated: 1 KiB POSTs

The scripts are as cheap as wrk allows: `plain` is static, so no Lua runs; the others give a text
made beforehand, or three joined by `..`. `keyed` gives every request a key of its own, `repeated`
the same `KEYS` again and again; `tag` keeps the keys of one run apart from another's. Results come
as one line that `done` prints, so nothing of wrk's output for people is parsed.

Closed loop: 64 callers who each wait for their answer. For latency see `pace`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Final

from .bench import Bench
from .process import Failed, Process

KEYS: Final = 1000
WARM_S: Final = 1.0

_HEAD: Final = (
    r'"POST /orders HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n'
    r'Content-Length: 1024\r\n"'
)
_DONE: Final = """
done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format(
        'RESULT {"us":%d,"requests":%d,"status":%d,"socket":%d,"p50":%d,"p99":%d}\\n',
        summary.duration, summary.requests, e.status, e.connect + e.read + e.write + e.timeout,
        latency:percentile(50), latency:percentile(99)))
end
"""

SCRIPTS: Final = {
    "plain": """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
wrk.body = string.rep("x", 1024)
""",
    "keyed": f"""
local after = '"\\r\\n\\r\\n' .. string.rep("x", 1024)
local before, n = "", 0
init = function(args) before = {_HEAD} .. 'Idempotency-Key: "' .. args[1] .. "-" end
request = function() n = n + 1 return before .. n .. after end
""",
    "repeated": f"""
local texts, n = {{}}, 0
init = function(args)
    for i = 1, {KEYS} do
        texts[i] = {_HEAD} .. 'Idempotency-Key: "' .. args[1] .. "-" .. i .. '"\\r\\n\\r\\n'
            .. string.rep("x", 1024)
    end
end
request = function() n = n % {KEYS} + 1 return texts[n] end
""",
}


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk counted."""

    per_s: float
    requests: int
    bad: int
    """Answers of 400 and more, and what broke off."""
    p50_ms: float
    p99_ms: float
    cpu_us: float = 0.0
    """Processor time a request cost the server, where it was given: less noisy than its rate."""


def load(
    bench: Bench,
    port: int,
    script: str,
    *,
    seconds: float | None = None,
    tag: str = "k",
    path: str = "/orders",
    server: Process | None = None,
) -> Load:
    """Run wrk once. `path` is for a service that has its own; the script is adapted to it."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise Failed("wrk is not installed")
    lua = bench.folder / f"{script}-{abs(hash(path))}.lua"
    lua.write_text(SCRIPTS[script].replace("POST /orders ", f"POST {path} ") + _DONE)
    lasts = bench.seconds if seconds is None else seconds
    whole = max(1, round(lasts))
    used = server.cpu_s() if server else 0.0
    done = subprocess.run(
        [
            wrk, "-t1", f"-c{bench.connections}", f"-d{whole}s", "--timeout", "10s",
            "-s", str(lua), f"http://127.0.0.1:{port}{path}", "--", tag,
        ],
        capture_output=True, text=True, timeout=whole + 60, check=False,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {bench.load_core}),
    )  # fmt: skip
    used = server.cpu_s() - used if server else 0.0
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            said = json.loads(line.removeprefix("RESULT "))
            return Load(
                per_s=said["requests"] / (said["us"] / 1e6),
                requests=said["requests"],
                bad=said["status"] + said["socket"],
                p50_ms=said["p50"] / 1000,
                p99_ms=said["p99"] / 1000,
                cpu_us=used * 1e6 / max(1, said["requests"]),
            )
    raise Failed(f"wrk gave no result: {(done.stderr or done.stdout).strip()[-300:]}")


def good(load: Load, what: str) -> Load:
    """The same, or Failed where answers were not what they should be."""
    if load.bad:
        raise Failed(f"{what}: {load.bad} of {load.requests} answers were errors")
    if not load.requests:
        raise Failed(f"{what}: no answer came")
    return load
