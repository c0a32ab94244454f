"""`unspool send` and `unspool outbox drain`, as a person types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from crash.processes import free_port
from crash.service import Service
from unspool.admin.cli import cli
from unspool.errors import Undelivered


def unspool(*words: str, cwd: Path, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """A real process."""
    done = subprocess.run(
        [sys.executable, "-m", "unspool", *words], cwd=cwd, input=stdin, capture_output=True,
        timeout=60, check=False,
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
