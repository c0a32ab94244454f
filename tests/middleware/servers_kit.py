"""Real servers in processes of their own, each on a socket that is there before it starts.

with serving([COMMAND, …], folder=…, environ=…) as ports:
    answers = at_once([…])
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Got(NamedTuple):
    status: int
    fields: dict[str, str]
    """By names in lower case: uvicorn has them so."""
    body: bytes


@contextlib.contextmanager
def serving(
    commands: Sequence[Sequence[str]], *, folder: Path, environ: Mapping[str, str]
) -> Iterator[list[int]]:
    """Each command has `{fd}` for its listening socket. Yields their ports; stops them all."""
    with contextlib.ExitStack() as stack:
        ports = []
        for number, command in enumerate(commands):
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
            ports.append(listening.getsockname()[1])
            log = stack.enter_context(open(folder / f"server-{number}.log", "wb"))
            process = subprocess.Popen(
                [sys.executable, *(part.format(fd=listening.fileno()) for part in command)],
                pass_fds=[listening.fileno()], cwd=HERE, stdout=log, stderr=log,
                env={**os.environ, "HOME": str(folder), "PYTHONPATH": str(HERE), **environ},
                start_new_session=True,
            )  # fmt: skip
            stack.callback(stop, process)
        try:
            yield ports
        except BaseException:
            for number in range(len(commands)):
                sys.stderr.write((folder / f"server-{number}.log").read_text())
            raise


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def post(
    port: int,
    path: str = "/orders",
    body: bytes = b"",
    *,
    method: str = "POST",
    fields: Mapping[str, str] | None = None,
    chunked: bool = False,
) -> Got:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        given = iter([body]) if chunked else body
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A server may answer, and close, before it has read the whole body.
            connection.request(method, path, given, dict(fields or {}), encode_chunked=chunked)
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return Got(answer.status, told, answer.read())
    finally:
        connection.close()


def at_once(
    ports: Sequence[int], names: Sequence[str], *, each: int, path: str = "/orders"
) -> dict[str, list[Got]]:
    """`each` repeats under each key, all in parallel, over all ports."""
    with ThreadPoolExecutor(16) as pool:
        asked = {
            name: [
                pool.submit(
                    post, ports[number % len(ports)], path, name.encode(),
                    fields={
                        "Idempotency-Key": f'"{name}"', "X-User": "ann", "Prefer": "wait=20",
                        "Content-Type": "text/plain",
                    },
                )
                for number in range(each)
            ]
            for name in names
        }  # fmt: skip
        return {name: [one.result() for one in those] for name, those in asked.items()}
