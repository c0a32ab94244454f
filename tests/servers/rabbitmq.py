"""A real RabbitMQ for the tests that need one, on a free port in a temporary folder.

    with rabbitmq() as server:              skips, or fails where CI is set, without RabbitMQ
        server.wait()                       until it is ready
        server.url("orders")                amqp://guest:guest@127.0.0.1:PORT/?queue=orders
        server.pause() · server.go_on()     it accepts connections and answers nothing meanwhile
        server.kill(); server.start()       on what it had written

It takes some six seconds to start: one for a module, which does first what needs none. It listens
on loopback alone, with an epmd of its own, and ends with the tests, whatever becomes of them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ports import free_port

from .process import missing, started, stop, until

PLACES: Final = "/usr/lib/rabbitmq/lib"
"""Debian's. The one in /usr/sbin changes to the user rabbitmq, and keeps things in /var."""
START_S: Final = 100
MAY: Final = {
    "guest": (".*", ".*", ".*"),
    "writer": ("", ".*", ".*"),
    "reader": ("", "", ".*"),
}
"""Whom there is, and what he may make, write and read. All have the password `guest`."""
USERS: Final = {
    "users": [{"name": name, "password": "guest", "tags": ""} for name in MAY],
    "vhosts": [{"name": "/"}],
    "permissions": [
        {"user": name, "vhost": "/", "configure": make, "write": write, "read": read}
        for name, (make, write, read) in MAY.items()
    ],
}


def program() -> str:
    found = sorted(Path(PLACES).glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    epmd = shutil.which("epmd")
    if not found or epmd is None:
        missing("RabbitMQ", "apt-get install rabbitmq-server")
    return str(found[-1])


class RabbitMQ:
    """A server that runs, until it is killed."""

    def __init__(self, folder: Path) -> None:
        self.port: Final = free_port()
        self._folder: Final = folder
        self._epmd_port: Final = free_port()
        self._dist_port: Final = free_port()
        self._processes: Final[list[subprocess.Popen[bytes]]] = []
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "log.console = false\ndisk_free_limit.absolute = 1MB\n"
            "vm_memory_high_watermark.absolute = 1GB\n"
            f"load_definitions = {folder}/users.json\n"
        )
        (folder / "users.json").write_text(json.dumps(USERS))

    def url(self, queue: str, *, user: str = "guest:guest") -> str:
        return f"amqp://{user}@127.0.0.1:{self.port}/?queue={queue}"

    def _environ(self) -> dict[str, str]:
        folder = str(self._folder)
        return {
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/bin",
            "HOME": folder,
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"unspool{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/db",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RUNNING_UNDER_SYSTEMD": "yes",  # no shell stays between us and the server
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }

    def _spawn(self, *command: str) -> None:
        self._processes.append(started(command, log=self._folder / "out", env=self._environ()))

    def start(self) -> None:
        epmd = shutil.which("epmd") or "epmd"
        self._spawn(epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1")
        self._spawn(program())

    def wait(self) -> None:
        until(self._says, self._processes[-1], within_s=START_S, log=self._folder / "out")

    def _says(self) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), 30) as sock:
            sock.settimeout(30)
            sock.sendall(b"AMQP\0\0\x09\x01")
            return sock.recv(1)

    def kill(self) -> None:
        while self._processes:
            one = self._processes.pop()
            with suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait()

    def pause(self) -> None:
        stop(self._processes[-1].pid)

    def go_on(self) -> None:
        os.kill(self._processes[-1].pid, signal.SIGCONT)


@contextmanager
def rabbitmq() -> Iterator[RabbitMQ]:
    program()
    with tempfile.TemporaryDirectory(prefix="unspool-rabbitmq-") as folder:
        server = RabbitMQ(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.kill()
