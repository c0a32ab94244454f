"""`unspool export`, `import` and `move`: a spool to a file, a file to a spool, a spool to a spool.

Data goes to stdout or FILE, talk and a progress bar (only at a terminal) to stderr. Each can be cut
off anywhere and run again: an export goes on where its file ends, an import passes over what is
there, a move asks the source what is moved. The file is 0600: it holds requests whole, with bodies
and credentials, and the spool's secret.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

import click

from ...clock import SystemClock
from ...core.message import Instant, Key
from ...errors import CannotCreate, Unacceptable
from ...spools.protocol import Spool
from .. import wording
from ..spool import Desk, NoSuch, options, reached, using, utf8
from .corrupt import pages as set_aside

Went = Callable[[int], object]

_OTHER_SECRET: Final = click.option(
    "--other-secret", is_flag=True,
    help="Go on where the new spool has another secret: repeats of what is moved are done again.",
)  # fmt: skip


@contextmanager
def _bar(length: int, label: str) -> Iterator[Went]:
    """For a person who waits; nothing for a program."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield bar.update


async def _waiting(spool: Spool) -> int:
    rows = await spool.tally([Instant(0)])
    return sum(sum(row.counts) + row.held for row in rows)


def _told(text: str) -> None:
    click.echo(f"unspool: {wording.said(text)}", err=True)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# -- export ----------------------------------------------------------------------------------------


@click.command("export")
@click.argument("file", required=False)
@options
@click.option("--after", metavar="KEY", help="To stdout: only what comes behind this spool key.")
@click.option("--no-secret", is_flag=True, help="Leave the spool's secret out.")
def export_(
    *,
    file: str | None,
    spool: tuple[str, ...],
    config: str | None,
    after: str | None,
    no_secret: bool,
) -> int:
    """Write all messages as JSON lines, to FILE or to stdout.

    What waits, what is held, what bounced, and what was delivered with its answer, in order of
    acceptance. A FILE that was cut short is gone on with. It is a copy: do not deliver from both,
    and use `unspool move` where a relay runs.
    """
    if file and after:
        raise click.UsageError("--after goes with stdout: a FILE tells where it ends")
    if not file:
        hidden = no_secret or sys.stdout.isatty()
        if hidden and not no_secret:
            _told("the spool's secret is left out: this is a terminal")
        out = sys.stdout.buffer
        return using(
            lambda desk: _export(desk, out, after=after, secret=not hidden),
            spool=spool, config=config,
        )  # fmt: skip
    path = file

    async def work(desk: Desk) -> int:
        with _opened(path) as written:
            return await _go_on(desk, written, path, secret=not no_secret)

    return using(work, spool=spool, config=config)


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """For this user alone, whatever the umask; one that is there is gone on with."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(path, flags, 0o600), "r+b")
    except OSError as error:
        raise CannotCreate(
            f"{path} cannot be written: {error.strerror}. Nothing was exported. See who may write"
            f" there: ls -ld {shlex.quote(os.path.dirname(path) or '.')}"
        ) from error
    with file:
        os.fchmod(file.fileno(), 0o600)
        yield file


async def _go_on(desk: Desk, file: BinaryIO, path: str, *, secret: bool) -> int:
    from ...house.exporting import look
    from ...house.lines import Unfit
    from ...house.secret import mark_of, secret_of

    try:
        begun = look(file)
    except Unfit as error:
        raise Unacceptable(
            f"{path} is there already, and is no export that could be gone on with: {error}. It was"
            " not changed. Name another file, or remove it"
        ) from None
    if begun.size and begun.mark != mark_of(await secret_of(desk.spool)):
        raise Unacceptable(
            f"{path} is the export of another spool. It was not changed. Name another file"
        )
    if begun.whole:
        _told(f"{path} is whole: {_many(begun.messages, 'message')}. To export anew, remove it")
        return 0
    file.seek(begun.size)
    file.truncate()
    code = await _export(
        desk, file, after=begun.after, before=begun.messages, headed=not begun.size, secret=secret
    )
    file.flush()
    os.fsync(file.fileno())
    return code


async def _export(
    desk: Desk, out: BinaryIO, *, after: str | None, before: int = 0, headed: bool | None = None,
    secret: bool,
) -> int:  # fmt: skip
    from ...house.exporting import export

    if after and (await desk.spool.find([Key(utf8(after))]))[0] is None:
        raise NoSuch(
            f"no entry has the spool key {wording.plain(after)}: nothing can be found behind it."
            " Export from the beginning"
        )
    headed = not after if headed is None else headed
    with _bar(await _waiting(desk.spool), "exporting") as went:
        count = await export(
            desk.spool, out.write, clock=SystemClock(), after=Key(after) if after else None,
            before=before, headed=headed, secret=secret, went=went,
        )  # fmt: skip
    out.flush()
    _told(f"exported {_many(count, 'message')}")
    return await _corrupt(desk.spool, "are not in it")


async def _corrupt(spool: Spool, what: str) -> int:
    """Records that nobody can take anywhere."""
    count = 0
    async for _ in set_aside(spool):
        count += 1
    if not count:
        return 0
    _told(f"{_many(count, 'record')} set aside as corrupt {what}: unspool queue --corrupt")
    return os.EX_DATAERR


# -- import ----------------------------------------------------------------------------------------


@click.command("import")
@click.argument("file", type=click.File("rb"))
@options
@click.option("--skip-bad", is_flag=True, help="Pass over lines that cannot be read.")
@_OTHER_SECRET
def import_(
    *,
    file: BinaryIO,
    spool: tuple[str, ...],
    config: str | None,
    skip_bad: bool,
    other_secret: bool,
) -> int:
    """Take in what `unspool export` wrote: FILE, or - for stdin.

    Doing it twice changes nothing: what is known is left as it is. The spool is made where there is
    none.
    """
    from ...house.importing import check_head
    from ...house.lines import LINE_MAX_BYTES

    size = os.fstat(file.fileno()).st_size
    first = file.readline(LINE_MAX_BYTES + 1)
    check_head(first)

    async def work(desk: Desk) -> int:
        from ...house.importing import bring

        with _bar(size, "importing") as went:
            lines = _counted(first, file, went, limit=LINE_MAX_BYTES + 1)
            sums = await bring(
                desk.spool, lines, clock=SystemClock(),
                key_ms=desk.settings.key_keep_ms, where="the spool", other_secret=other_secret,
                skip_bad=_told if skip_bad else None,
            )  # fmt: skip
        click.echo(f"new {sums.new} · known {sums.known} · other {sums.other} · bad {sums.bad}")
        code = 0
        for count, text, one in (
            (sums.elsewhere, "had been moved to another spool: export that one", 0),
            (sums.ahead, "had settled in the file and wait here: they will be delivered", 0),
            (sums.other, "were left out: their keys are other requests' here", os.EX_DATAERR),
            (sums.bad, "lines were passed over", os.EX_DATAERR),
            (sums.running, "are being tried here right now: import again", os.EX_TEMPFAIL),
            (not sums.whole, "file has no last line: it was cut short", os.EX_DATAERR),
        ):
            if count:
                _told(f"{int(count)} {text}")
                code = code or one
        if sums.word:
            _told(sums.word)
        return code

    return using(work, spool=spool, config=config, create=True)


def _counted(first: bytes, file: BinaryIO, went: Went, *, limit: int) -> Iterator[bytes]:
    text = first
    while text:
        yield text
        went(len(text))
        text = file.readline(limit)


# -- move ------------------------------------------------------------------------------------------


@click.command("move")
@click.option("--from", "source", metavar="URL", required=True, help="The spool to leave.")
@click.option("--to", "target", metavar="URL", required=True, help="The spool to move into.")
@click.option("--config", metavar="FILE", help="The file with the settings.")
@click.option(
    "--wait", "wait_s", metavar="SECONDS", type=click.IntRange(min=0), default=60,
    show_default=True, help="How long to wait for what is being tried.",
)  # fmt: skip
@_OTHER_SECRET
def move(*, source: str, target: str, config: str | None, wait_s: int, other_secret: bool) -> int:
    """Move all messages from one spool to another, while relays run on either.

    None is lost and none is delivered twice, wherever it is cut off: run it again. At the old place
    a message that was moved says so; answers are known at both. The new spool is made where there
    is none, and gets the old one's secret.
    """

    async def work(desk: Desk) -> int:
        async with reached(target, create=True) as there:
            return await _move(
                desk, there, target=target, wait_ms=wait_s * 1000, other_secret=other_secret
            )

    return using(work, spool=(source,), config=config)


async def _move(desk: Desk, there: Spool, *, target: str, wait_ms: int, other_secret: bool) -> int:
    from ...core.urls import concealed
    from ...house.moving import Move

    with _bar(await _waiting(desk.spool), "moving") as went:
        moving = Move(
            desk.spool, there, clock=SystemClock(), key_ms=desk.settings.key_keep_ms, went=went
        )
        sums = await moving.run(wait_ms=wait_ms, other_secret=other_secret, where=concealed(target))
    click.echo(f"moved {sums.moved} · copied {sums.copied} · known {sums.known}")
    code = 0
    for count, text, one in (
        (sums.later, "are being tried, or stand behind what is: run it again", os.EX_TEMPFAIL),
        (sums.other, "stay: their keys are other requests' at the new place", os.EX_DATAERR),
        (sums.back, "stay: they were moved away from the new place before", os.EX_DATAERR),
        (sums.coming, "stay: the move that was to bring them here was cut off; run that one again",
         os.EX_TEMPFAIL),
        (sums.parked, "are held at the new place, and the old one does not know them",
         os.EX_DATAERR),
    ):  # fmt: skip
        if count:
            _told(f"{count} {text}")
            code = code or one
    if sums.word:
        _told(sums.word)
    return await _corrupt(desk.spool, "stay where they are") or code
