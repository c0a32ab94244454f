"""Collectors as processes, and other people's programs that put and take.

collector = Collecting(folder, queue, to=service.url);  collector.start();  await collector.stop()
submit(server, function, payload)        Debian's `gearman`, as a shell script would
perl(script, *arguments, stdin=…)        with Gearman::Client and Gearman::Worker, or a skip
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from docs.page import ROOT, blocks, matches, run
from ports import free_ports
from servers.gearmand import Gearmand, program

START_S = 60

CLIENT = """
use Gearman::Client;
local $/; my $payload = <STDIN>;
my $client = Gearman::Client->new(job_servers => [$ARGV[0]]);
my $handle = $client->dispatch_background($ARGV[1], \\$payload, {uniq => $ARGV[2]}) or die "no";
print $handle;
"""

WORKER = """
use Gearman::Worker;
binmode STDOUT;
my $worker = Gearman::Worker->new(job_servers => [$ARGV[0]]);
my $seen = 0;
$worker->register_function($ARGV[1] => sub { print $_[0]->arg; $seen = 1; return 1; });
$worker->work(stop_if => sub { $seen });
"""


def written(key: str, *, target: str = "/orders", **members: object) -> bytes:
    return json.dumps(
        {"unspool": 1, "method": "POST", "target": target, "key": key, "body": key} | members
    ).encode()


def environ() -> dict[str, str]:
    """Ours, without what would be a setting, or be taken for one."""
    return {k: v for k, v in os.environ.items() if not k.startswith("UNSPOOL_")}


class Collecting:
    """`unspool collect`, until it is stopped."""

    def __init__(self, folder: Path, queue: str, *, to: str, command: str = "collect") -> None:
        self.spool = folder / "spool.db"
        self.log = folder / "collect.log"
        self.command = [
            sys.executable, "-m", "unspool", command, queue, "--to", to,
            "--spool", f"sqlite:///{self.spool}", "--log-format", "text",
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        before = self.text().count("collects from")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ()
            )
        until = time.monotonic() + START_S
        while self.text().count("collects from") == before:
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < until, self.text()
            time.sleep(0.01)

    def once(self) -> int:
        """`--once`: its exit code."""
        with self.log.open("ab") as log:
            return subprocess.run(
                [*self.command, "--once"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environ(), timeout=100, check=False,
            ).returncode  # fmt: skip

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def end(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def check_page(name: str, folder: Path, replace: dict[str, str], *, before: str = "") -> None:
    """The commands of a how-to do what it says, with these ports instead of the well-known."""
    session = blocks(ROOT / "docs/howto" / name)
    relay, service = map(str, free_ports(2))
    replace = {"8700": relay, "8000": service, **replace}
    results = run(session, folder=folder, replace=replace, before=before)
    for block in session:
        code, printed = results[block.number]
        assert code == 0, f"{block.commands}\n-> {code}\n{printed}"
        if block.expected is not None:
            assert matches(block.expected, printed), f"{printed}\nand not\n{block.expected}"


def tool(
    server: Gearmand, *arguments: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Debian's `gearman`."""
    where = ("-h", "127.0.0.1", "-p", str(server.port))
    return subprocess.run(
        [program("gearman"), *where, *arguments],
        input=stdin, check=False, timeout=60, capture_output=True,
    )  # fmt: skip


def submit(server: Gearmand, function: str, payload: bytes) -> None:
    assert tool(server, "-f", function, "-b", stdin=payload).returncode == 0


def perl(script: str, *arguments: str, stdin: bytes = b"") -> bytes:
    if (
        shutil.which("perl") is None
        or subprocess.run(
            ["perl", "-MGearman::Client", "-e", "1"], capture_output=True, check=False
        ).returncode
    ):
        absent = "Perl's Gearman::Client is not installed (Debian: libgearman-client-perl)"
        if os.environ.get("CI"):
            pytest.fail(absent)
        pytest.skip(absent)
    done = subprocess.run(
        ["perl", "-e", script, *arguments], input=stdin, capture_output=True, timeout=60, check=True
    )
    return done.stdout
