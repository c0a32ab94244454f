"""`unspool send` and `unspool outbox drain`, as a person types them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from crash.service import Service
from ports import free_port
from unspool.admin.cli import cli
from unspool.errors import Undelivered


def unspool(*words: str, cwd: Path, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """A real process."""
    done = subprocess.run(
        [sys.executable, "-m", "unspool", *words], cwd=cwd, input=stdin, capture_output=True,
        timeout=100, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.decode()


def here(*words: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """The same in this process."""
    done = CliRunner().invoke(
        cli, words, input=stdin, catch_exceptions=False, standalone_mode=False
    )
    return done.return_value, done.stdout_bytes, done.stderr


def test_sent_saved_and_drained_by_real_processes(tmp_path: Path) -> None:
    """Exit 0 delivered, 75 saved; the body on stdout and all talk on stderr."""
    with Service(port=free_port()) as service:
        url = f"{service.url}/orders"
        code, out, err = unspool("send", url, "-d", "tea", "--key", "order-1", cwd=tmp_path)
        [first] = service.of("order-1")
        assert (code, out, err) == (0, first.answer, "")
        service.down()
        words = ("-d", "cups", "--key", "order-2", "--deadline", "1")
        code, out, err = unspool("send", url, *words, cwd=tmp_path)
        assert (code, out) == (75, b"")
        assert "saved in sqlite:///outbox.db under order-2" in err
        service.up()
        code, out, err = unspool("outbox", "drain", cwd=tmp_path)
        assert (code, out) == (0, b"Nothing waits.\n")
        assert "0 wait, 1 settled" in err
        assert len(service.of("order-2")) == 1


def test_exit_codes_say_who_has_it(tmp_path: Path) -> None:
    """0 delivered, 65 rejected, 69 nobody, 75 in the outbox still, 76 unknown."""
    at = ("--outbox", str(tmp_path / "o.db"))
    with Service(port=free_port()) as service:
        url = f"{service.url}/orders"
        code, out, _ = here("send", url, "-i", "-d", "@-", *at, stdin=b"from stdin")
        assert code == 0
        assert out.startswith(b"HTTP/1.1 200")
        assert service.handled[-1].body == b"from stdin"
        service.weather = lambda _key, _body: "422"
        code, _, err = here("send", url, "--json", '{"item": 1}', *at)
        assert code == os.EX_DATAERR
        assert err.startswith("unspool: rejected: 422")
        service.down()
        with pytest.raises(Undelivered) as caught:
            here("send", url, "-d", "x", "--outbox", "", "--deadline", "0.5")
        assert caught.value.exit_code == os.EX_UNAVAILABLE
        assert here("send", url, "-d", "x", *at, "--deadline", "0.5", "--before")[0] == 75
        code, out, _ = here("outbox", "drain", "--timeout", "0.1", *at)
        assert (code, out) == (75, b"1 waiting\n")


@pytest.mark.parametrize(
    "words",
    [
        ("send", "/orders"),
        ("send", "http://127.0.0.1:1/", "-H", "nonsense"),
        ("send", "http://127.0.0.1:1/", "-d", "a", "--json", "1"),
        ("send", "http://127.0.0.1:1/", "-u", "nobody"),
    ],
)
def test_a_command_line_that_makes_no_sense_sends_nothing(words: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        here(*words)


def test_draining_gives_each_service_its_time(tmp_path: Path) -> None:
    """One that is down does not use up what the others have."""
    down, up = sorted((free_port(), free_port()), key=str)
    at = ("--outbox", str(tmp_path / "o.db"))
    for port in (down, up):
        code, _, _ = here(
            "send", f"http://127.0.0.1:{port}/o", "-d", "tea", "--key", f"{port}", *at
        )
        assert code == 75
    with Service(port=up) as service:
        for _ in range(10):  # the one that is down comes first, each time
            code, out, _ = here("outbox", "drain", "--timeout", "2", *at)
            assert code == 75
            if out == b"1 waiting\n":
                break
        assert out == b"1 waiting\n"
        assert len(service.of(f"{up}")) == 1


@pytest.mark.parametrize("before", [True, False])
def test_interrupted_it_says_what_is_known(before: bool, tmp_path: Path) -> None:
    """Whether it may have been applied, and the key under which it may be sent again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/orders"
        words = ["send", url, "-d", "tea", *(["--before"] if before else [])]
        process = subprocess.Popen(
            [sys.executable, "-m", "unspool", *words], cwd=tmp_path, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        taken, _ = server.accept()
        with taken:
            head = ""
            while "\r\n\r\n" not in head:
                head += taken.recv(65536).decode()
            key = head.partition('Idempotency-Key: "')[2].partition('"')[0]
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (f"outbox.db under {key}" if before else "may have been applied. Send it again") in (
        err.decode()
    )
    assert key in err.decode()
