"""`unspool send URL`: one request by the smart client, as curl would be asked for it.

The body of the answer goes to stdout, all talk to stderr. Exit codes: 0 a server answered 2xx or
3xx; 75 it is saved, with a relay, a queue or in the outbox; 65 rejected, the body says why; 76
nobody knows whether it was applied; 69 nobody has it.

What is kept in the outbox is sent by the next `unspool send` that is running for long enough, or by
`unspool outbox drain`.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from ...core.message import SAFE_METHODS
from ...core.urls import concealed
from .. import wording
from ..spool import NoSuch
from .outbox import OUTBOX

UNKNOWN: Final = os.EX_PROTOCOL


@click.command()
@click.argument("url")
@click.option("-X", "--request", "method", metavar="METHOD", help="GET, or POST with a body.")
@click.option("-H", "--header", "headers", metavar="'NAME: VALUE'", multiple=True, help="A field.")
@click.option("-d", "--data", metavar="TEXT", help="The body; @FILE or @- reads it from there.")
@click.option(
    "--json", "json_text", metavar="JSON", help="The body, as application/json; @FILE too."
)
@click.option("-u", "--user", metavar="NAME:PASSWORD", help="Authorization: Basic.")
@click.option("-i", "--include", is_flag=True, help="Status and fields of the answer, too.")
@click.option("--key", metavar="KEY", help="The Idempotency-Key. Default: one is made.")
@click.option(
    "--server", "servers", metavar="ORIGIN", multiple=True, help="Another server like it."
)
@click.option(
    "--queue", "queues", metavar="URL", multiple=True, help="A relay or queue to turn to."
)
@click.option(
    "--outbox", metavar="URL", default=OUTBOX, show_default=True,
    help="Where it is kept if nobody takes it; empty: nowhere.",
)  # fmt: skip
@click.option("--before", is_flag=True, help="Keep it before it is sent (durability before).")
@click.option(
    "--deadline", metavar="SECONDS", type=float, default=10.0, show_default=True,
    help="For all attempts together.",
)  # fmt: skip
@click.option("--contended", is_flag=True, help="Worth nothing late: nobody is to keep it.")
def send(
    *, url: str, method: str | None, headers: tuple[str, ...], data: str | None,
    json_text: str | None, user: str | None, include: bool, key: str | None,
    servers: tuple[str, ...], queues: tuple[str, ...], outbox: str, before: bool,
    deadline: float, contended: bool,
) -> int:  # fmt: skip
    """Send one request: to a server, another, a queue, the outbox.

    Exit code 0: a server answered. 75: it is saved, and will be delivered. 65: rejected, the body
    says why. 76: it may or may not have been applied. 69: nobody has it.
    """
    from ...client.blocking import Client

    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise click.UsageError(f"URL cannot be read: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise click.UsageError("URL is a whole address: http://host:port/path")
    if data is not None and json_text is not None:
        raise click.UsageError("--data and --json are both the body: give one")
    body = _body(json_text if data is None else data)
    fields = [_field(one) for one in headers]
    if json_text is not None and not any(name.lower() == "content-type" for name, _ in fields):
        fields.append(("Content-Type", "application/json"))
    verb = (method or ("GET" if body is None else "POST")).upper()
    keeps = verb.encode() not in SAFE_METHODS  # nothing else makes a file
    options: dict[str, Any] = {"queues": queues, "outbox": (outbox or None) if keeps else None}
    if before and keeps:
        options["durability"] = "before"
    with Client([f"{parts.scheme}://{parts.netloc}", *servers], **options) as client:
        request = client.build(
            verb,
            (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            content=body,
            headers=fields,
            auth=_user(user),
            key=key,
            deadline=deadline,
            contended=contended,
        )
        try:
            result = client.send(request)
        except KeyboardInterrupt:
            if keeps:
                _interrupted(request.key, outbox=concealed(outbox), before="durability" in options)
            raise
    return _tell(result, include=include, outbox=concealed(outbox))


def _body(text: str | None) -> bytes | None:
    if text is None:
        return None
    if not text.startswith("@"):
        return os.fsencode(text)  # byte for byte as it was typed
    if text == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        name = wording.plain(text[1:])
        raise NoSuch(f"{name!r} cannot be read: {error.strerror}. Nothing was sent.") from error


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name:
        raise click.UsageError(f"{wording.plain(text)!r} is no field: write 'Name: value'")
    return name.strip(), value.strip()


def _user(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    name, colon, password = text.partition(":")
    if not colon:
        raise click.UsageError("--user takes NAME:PASSWORD")
    return name, password


def _tell(result: Any, *, include: bool, outbox: str) -> int:
    """The body to stdout, the rest to stderr, and the exit code."""
    from ...client.results import Accepted, Delivered, Queued, Rejected

    match result:
        case Delivered(response) | Rejected(response):
            _answer(response, include=include)
            if isinstance(result, Delivered):
                return 0
            _say(f"rejected: {response.status} {response.reason}")
            return os.EX_DATAERR
        case Accepted(receipt):
            _say(f"saved by {receipt.where} under {result.key}; it will be delivered")
            if receipt.url:
                _say(f"ask for it: curl {shlex.quote(receipt.url)}")
            return os.EX_TEMPFAIL
        case Queued(key):
            _say(f"saved in {outbox} under {key}; it will be delivered")
            _say(f"send what waits: unspool outbox drain --outbox {shlex.quote(outbox)}")
            return os.EX_TEMPFAIL
    _say(f"unknown: {result.why}. It is not sent again (key {result.key})")
    if result.response is not None:
        _answer(result.response, include=include)
    return UNKNOWN


def _interrupted(key: str, *, outbox: str, before: bool) -> None:
    if before:
        _say(f"interrupted. It is in {outbox} under {key}, and goes out again from there")
    else:
        _say(f"interrupted. It may have been applied. Send it again under its key: --key {key}")


def _answer(response: Any, *, include: bool) -> None:
    out = sys.stdout.buffer
    if include:
        lines = [f"HTTP/1.1 {response.status} {response.reason}".rstrip()]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        out.write(("\r\n".join(map(wording.plain, lines)) + "\r\n\r\n").encode())
    out.write(response.body)
    out.flush()
    if not response.whole:
        _say("its body was too large to keep")


def _say(text: str) -> None:
    click.echo(f"unspool: {wording.said(text)}", err=True)
