"""The command line: `unspool COMMAND`.

Data goes to stdout, talk to stderr. Exit codes are those of sysexits.h (table below). Nothing needs
a terminal, nothing is coloured. Every error that we know is one line, `unspool: message`; one that
we do not know is one line too, and a traceback with UNSPOOL_DEBUG set. A stream that the caller has
closed leads nowhere; what stdout's encoding does not have is written as an escape.

What a command needs is imported when it runs: `unspool version` opens no database driver.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Final

import click

from .. import __version__
from ..core import heads
from ..errors import UnspoolError
from .commands.check_idempotency import check_idempotency
from .commands.collect import collect
from .commands.config import config
from .commands.house import export_, import_, move
from .commands.outbox import outbox
from .commands.queue import queue
from .commands.send import send
from .commands.serve import serve
from .commands.show import show
from .commands.verbs import COMMANDS
from .wording import said

VERSION: Final = f"unspool {__version__} ({'compiled' if heads.COMPILED else 'not compiled'})"
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""What a shell says of a program that wrote to a pipe nobody reads: 128 + SIGPIPE."""

EXIT_CODES: Final = {
    os.EX_OK: "It was done.",
    os.EX_USAGE: "The command line makes no sense.",
    os.EX_DATAERR: "The name means several messages, or one that has settled; a record is spoilt; a"
    " server rejected the request.",
    os.EX_NOINPUT: "There is no such message, or no such spool.",
    os.EX_UNAVAILABLE: "An optional part is not installed; the server to be asked cannot be; nobody"
    " has the request.",
    os.EX_SOFTWARE: "A mistake of ours.",
    os.EX_CANTCREAT: "A file, folder or socket cannot be made.",
    os.EX_IOERR: "The disk is full, or failed.",
    os.EX_TEMPFAIL: "Not now: a message is being tried, the spool is in use or did not answer; the"
    " request is saved and not yet delivered.",
    os.EX_PROTOCOL: "A row of the conformance table that must hold does not; a request may or"
    " may not have been applied.",
    os.EX_CONFIG: "A setting is wrong, or a promise cannot be kept as the spool is set up.",
    INTERRUPTED: "Interrupted.",
    BROKEN_PIPE: "Nobody read on.",
}


class Commands(click.Group):
    """The commands in the order of the day, and `mailq` for hands that know it."""

    ALIASES: Final = {"mailq": "queue"}

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return super().get_command(ctx, self.ALIASES.get(name, name))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`unspool mailq` is `unspool queue`. Exit codes are those of sysexits.h.",
)
@click.version_option(__version__, "-V", "--version", message=VERSION)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Email-grade delivery for HTTP.

    A relay in front of any HTTP service: what the service answers is passed on; what it cannot
    answer is saved, answered 202 with a receipt, and delivered later.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(os.EX_USAGE)


@click.command()
def version() -> int:
    """Print the version, and whether heads are handled in C (README) or in Python."""
    click.echo(VERSION)
    return 0


_RUN: Final = (serve, collect, config)
_HOUSE: Final = (export_, import_, move)
_SENDER: Final = (send, outbox)
_OTHER: Final = (check_idempotency, version)

for _command in (*_RUN, queue, show, *COMMANDS, *_HOUSE, *_SENDER, *_OTHER):
    cli.add_command(_command)


def main() -> int:
    """The program. Every exit code comes from here."""
    _open_streams()
    code = _run()
    if code == BROKEN_PIPE:
        # What is left in the buffer would fail again, loudly, when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _open_streams() -> None:
    """What the caller has closed (`>&-`) would be None here, and its number the next file's: a
    spool's, and whoever writes to stderr by number would write into it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # in this order: each gets its own number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - kept
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run() -> int:
    try:
        code = cli.main(prog_name="unspool", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "unspool"
        click.echo(f"unspool: {said(error.format_message())} (see {where} --help)", err=True)
        return os.EX_USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except SystemExit as end:  # click's own: 1 for a broken pipe, 0 for shell completion
        return BROKEN_PIPE if end.code else 0
    except UnspoolError as error:
        return _say(error, f"{error}", error.exit_code)
    except UnicodeEncodeError as error:  # bytes that are no text come in as lone surrogates
        text = "what was typed has a byte that is not UTF-8, and cannot be used. Write it in UTF-8."
        return _say(error, text, os.EX_USAGE)
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        return _say(error, f"{error.strerror or error}{name}", os.EX_IOERR)
    except Exception as error:
        text = f"{type(error).__name__}: {error} (a mistake of ours; UNSPOOL_DEBUG=1 tells more)"
        return _say(error, text, os.EX_SOFTWARE)
    return code if isinstance(code, int) else 0


def _say(error: Exception, text: str, code: int) -> int:
    if os.environ.get("UNSPOOL_DEBUG"):
        traceback.print_exception(error)
    click.echo(f"unspool: {said(text)}", err=True)
    return code
