"""Restate, the durable queue that the accept row is compared with: installed, started, loaded.

    install() -> Path                        its npm packages, in the user's cache; once
    with Restate(bench, home, …) as server:  a fresh server with one service that was registered
        server.port, server.path             where its `/send` is

Durable as ours is: it syncs before it answers 202. A service must be registered before something
can be sent to it, so a minimal one runs until it is, and is then stopped: as in our own row, the
destination is down. `partitions` is Restate's own setting (24 as it comes; on one machine 1 is the
fastest, by far); `cores` says where it may run.

Needs node and npm, and the registry the first time. Telemetry is off. Its data live in the bench's
folder, and the server for no longer than the `with`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final

from .bench import Bench
from .process import Failed, Process, fetch, free_port, wait_for

PACKAGES: Final = ("@restatedev/restate-server", "@restatedev/restate-sdk")
INSTALL_S: Final = 300
QUIET: Final = {
    "RESTATE_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "SCARF_ANALYTICS": "false",
    "npm_config_loglevel": "error",
    "npm_config_update_notifier": "false",
}
SERVICE: Final = """
import { createServer } from "node:http2";
import * as restate from "@restatedev/restate-sdk";
const bytes = { input: restate.serde.binary, output: restate.serde.binary };
const take = restate.handlers.handler(bytes, async () => new Uint8Array());
const bench = restate.service({ name: "Bench", handlers: { take } });
createServer(restate.createEndpointHandler({ services: [bench] }))
    .listen(Number(process.argv[2]), "127.0.0.1");
"""
CONFIG: Final = """
bind-address = "127.0.0.1:{node}"
listen-mode = "tcp"
disable-telemetry = true
shutdown-timeout = "5s"
default-num-partitions = {partitions}
base-dir = "{folder}/data"
[ingress]
bind-address = "127.0.0.1:{ingress}"
[admin]
bind-address = "127.0.0.1:{admin}"
disable-web-ui = true
"""


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "unspool-benchmarks", "restate")


def _binary(home: Path) -> Path | None:
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"restate-server-{platform.system().lower()}-{machine}"
    found = home / "node_modules" / "@restatedev" / name / "bin" / "restate-server"
    return found if found.exists() else None


def install() -> Path:
    """Its home. Raises Failed where it cannot be had."""
    home = cache()
    if shutil.which("node") is None:
        raise Failed("node is not installed")
    if _binary(home) is None:
        npm = shutil.which("npm")
        if npm is None:
            raise Failed("npm is not installed")
        home.mkdir(parents=True, exist_ok=True)
        Path(home, "package.json").write_text('{"private": true, "type": "module"}\n')
        try:
            done = subprocess.run(
                [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES],
                cwd=home, env={**os.environ, **QUIET}, capture_output=True, text=True,
                timeout=INSTALL_S, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Failed(f"npm took longer than {INSTALL_S} s to install it") from None
        if done.returncode or _binary(home) is None:
            raise Failed(f"npm could not install it: {done.stderr.strip()[-200:]}")
    Path(home, "service.mjs").write_text(SERVICE)
    return home


def version(home: Path) -> str:
    package = home / "node_modules" / "@restatedev" / "restate-server" / "package.json"
    return str(json.loads(package.read_text())["version"])


class Restate(Process):
    path: Final = "/Bench/take/send"

    def __init__(self, bench: Bench, home: Path, *, partitions: int, cores: set[int]) -> None:
        binary = _binary(home)
        assert binary is not None
        self.folder = bench.new_folder("restate")
        self.port, admin, node = free_port(), free_port(), free_port()
        config = self.folder / "restate.toml"
        config.write_text(
            CONFIG.format(
                folder=self.folder, partitions=partitions, ingress=self.port, admin=admin, node=node
            )
        )
        super().__init__(
            [str(binary), "--config-file", str(config), "--no-logo"],
            cores=cores,
            log=self.folder / "output.log",
            folder=self.folder,
            environment=QUIET,
        )
        try:
            wait_for(lambda: self._healthy(admin), "Restate's start", 40)
            self._register(bench, home, admin)
            wait_for(self._takes, "Restate taking a request", 20)
        except BaseException:
            self.stop()
            raise

    def _healthy(self, admin: int) -> bool:
        if not self.alive:
            raise Failed(f"restate-server ended at once: {self.said()}")
        try:
            return fetch(admin, "/health")[0] == 200
        except OSError:
            return False

    def _takes(self) -> bool:
        fields = {"Content-Type": "application/octet-stream"}
        return fetch(self.port, self.path, method="POST", body=b"x", fields=fields)[0] == 202

    def _register(self, bench: Bench, home: Path, admin: int) -> None:
        port = free_port()
        with Process(
            ["node", str(home / "service.mjs"), str(port)],
            cores={bench.load_core},
            log=self.folder / "service.log",
            folder=home,
        ) as service:
            service.wait_listening(port)
            status, _, body = fetch(
                admin,
                "/deployments",
                method="POST",
                body=json.dumps({"uri": f"http://127.0.0.1:{port}"}).encode(),
                fields={"Content-Type": "application/json"},
            )
            if status not in (200, 201):
                raise Failed(f"the service could not be registered: {status} {body[:200]!r}")

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self.folder, ignore_errors=True)
