"""The targets: servers in processes of their own, in front of the counter service.

with TARGETS["relay"](folder) as target:      running; ended afterwards
    target.service                            to be given to `check`
    target.logs()                             everything that its processes have said
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ports import free_ports
from unspool.testing.idempotency.service import Service

HERE = Path(__file__).parent
PATIENCE_S = 60.0
"""A Python with all its imports, on a machine that has something else to do."""


@dataclass
class Target:
    service: Service
    folder: Path

    def logs(self) -> str:
        return "\n".join(path.read_text("utf-8", "replace") for path in self.folder.glob("*.log"))


@contextlib.contextmanager
def process(folder: Path, name: str, port: int, *words: str, **more: str) -> Iterator[str]:
    """A server at this port, as soon as it listens; its URL."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("UNSPOOL_")}
    with (folder / f"{name}.log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=folder,
            env={**ours, "FOLDER": str(folder), "PYTHONPATH": str(HERE), **more},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _await(running, port, folder / f"{name}.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _await(running: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and running.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"it does not listen:\n{log.read_text('utf-8', 'replace')}")


def uvicorn(
    folder: Path, app: str, *words: str, factory: bool = False
) -> AbstractContextManager[str]:
    [port] = free_ports(1)
    more = [*words, *(["--factory"] if factory else [])]
    return process(
        folder, app, port, "uvicorn", "--log-level", "debug", "--port", str(port), *more,
        f"served:{app}",
    )  # fmt: skip


@contextlib.contextmanager
def bare(folder: Path) -> Iterator[Target]:
    """The positive control: no idempotency at all."""
    with uvicorn(folder, "bare") as url:
        yield Target(Service(url=url), folder)


@contextlib.contextmanager
def asgi(folder: Path) -> Iterator[Target]:
    with uvicorn(folder, "asgi", factory=True) as url:
        yield Target(Service(url=url), folder)


@contextlib.contextmanager
def retry(folder: Path) -> Iterator[Target]:
    with uvicorn(folder, "retry", factory=True) as url:
        yield Target(Service(url=url, parks=True, lifetime=True), folder)


def waitress(folder: Path, name: str, **more: str) -> AbstractContextManager[str]:
    [port] = free_ports(1)
    app = name.partition("-")[0]
    words = ("waitress", "--listen", f"127.0.0.1:{port}", "--threads", "64", "--call")
    return process(folder, name, port, *words, f"served:{app}", **more)


@contextlib.contextmanager
def wsgi(folder: Path) -> Iterator[Target]:
    with waitress(folder, "wsgi") as url:
        yield Target(Service(url=url), folder)


@contextlib.contextmanager
def django(folder: Path) -> Iterator[Target]:
    """A project has one set of settings: what forgets soon is another process."""
    with (
        waitress(folder, "django") as url,
        waitress(folder, "django-short", SETUP="short") as short,
    ):
        yield Target(Service(url=url, mounts={"short": short}), folder)


def _who(name: str, token: int) -> tuple[tuple[str, str], ...]:
    """As an authenticating proxy in front of the relay would send it on."""
    return (("Authorization", f"Bearer {name}.{token}"), ("X-Account", name))


@contextlib.contextmanager
def relay(folder: Path, *words: str) -> Iterator[Target]:
    """`unspool serve` in front of the guarded service; another one forgets soon."""
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(uvicorn(folder, "guarded"))
        urls = []
        for name, more in (
            ("main", ()),
            ("short", ("--answer-keep-ms", "1s", "--key-keep-ms", "3s")),
        ):
            [port] = free_ports(1)
            command = (
                "unspool", "serve", "--to", behind, "--listen", f"127.0.0.1:{port}",
                "--spool", f"sqlite:///{folder}/{name}-relay.db", "--survives", "process",
                "--scope-fields", "x-account", "--backoff-least-ms", "300ms",
                "--disk-free-min-bytes", "0", "--log-level", "debug", *more, *words,
            )  # fmt: skip
            urls.append(stack.enter_context(process(folder, f"{name}-relay", port, *command)))
        service = Service(
            url=urls[0],
            counts=behind,
            mounts={"short": urls[1]},
            parks=True,
            lifetime=True,
            caller=_who("alice", 1),
            renewed=_who("alice", 2),
            other=_who("bob", 1),
        )
        yield Target(service, folder)


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


TARGETS: Mapping[str, Callable[[Path], AbstractContextManager[Target]]] = {
    "relay": relay,
    "ASGI": asgi,
    "Retry": retry,
    **({"WSGI": wsgi} if _has("unspool.middleware.wsgi") else {}),
    **({"Django": django} if _has("unspool.middleware.django.middleware") else {}),
}
