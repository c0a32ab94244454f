"""What can go wrong, sorted by who must act. Outcomes are values; these are broken contracts.

    Refused        the sender keeps the request and tries again       503
    Unacceptable   the sender must mend it; repeating is useless      400, 413, 422
    Broken         the operator must act                              exit codes from sysexits
    Saved          nobody: it is in good hands                        raised by adapters
    assert         us

Each message says what happened, where the request is now, what happens next, and one command.
Foreign exceptions are translated where they come in; `__cause__` keeps them.
"""

from __future__ import annotations

import os


class UnspoolError(Exception):
    """Something in unspool went wrong."""

    exit_code: int = os.EX_SOFTWARE

    def __init__(self, message: str = "") -> None:
        super().__init__(message or type(self).__doc__)


class Refused(UnspoolError):
    """Responsibility was not taken; the request is still yours. Send it again."""

    exit_code = os.EX_TEMPFAIL


class Unavailable(Refused):
    """The spool did not answer; it may or may not have the message. Repeat it under its key."""


class NotDone(Unavailable):
    """The spool was not reached, or undid it: it does not have the message. Repeat it."""


class InDoubt(Unavailable):
    """It may or may not have been taken, and may not be sent twice. Others are taken."""


class Full(Refused):
    """A limit of the spool was reached."""

    exit_code = os.EX_IOERR


class Homeless(Refused):
    """The spool that could take it is away, and no other may. Others are taken all the same."""


class Busy(Refused):
    """Somebody else runs under this key just now. Nothing was run; ask again in a moment."""

    def __init__(self, message: str = "", *, retry_after_ms: int = 1_000) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms
        """How long to wait before asking again."""


class Crossed(Refused):
    """Two transactions crossed, and the database undid this one. Run it again, whole."""


class Stale(Refused):
    """The key was somebody else's by the end: what was written under it is undone. Run it again."""


class Undelivered(Refused):
    """Nobody has it: no server answered, no queue took it, no outbox keeps it. It is yours."""

    exit_code = os.EX_UNAVAILABLE
    request: object = None
    """What was to be sent (`unspool.client.Request`); `client.send` takes it again."""
    response: object = None
    """The last answer, where there was one: a 503, say (`unspool.client.Response`)."""
    tries: tuple[object, ...] = ()
    """Every attempt and every offer (`unspool.client.Try`)."""
    maybe_applied: bool = False
    """An attempt may have had its effect. Send it again only under the same key."""


class Saved(UnspoolError):
    """Somebody has it, and it will be delivered. Do not send it again."""

    exit_code = os.EX_TEMPFAIL
    key: str = ""
    """What it is called. Sent again under this key, it is still one request."""
    receipt: object = None
    """Where to ask, where a relay or a queue has it (`unspool.client.Receipt`, or for callers who
    block `BlockingReceipt`)."""
    result: object = None
    """`Accepted`, `Queued` or `FellBack`: who has it, and every attempt."""
    request: object = None
    """The request of the library that was asked."""


class Unacceptable(UnspoolError):
    """The request can never be accepted as it is."""

    exit_code = os.EX_DATAERR
    request: object = None
    """What was to be sent, where a client refused it (`unspool.client.Request`)."""


class TooMuch(Unacceptable):
    """More was asked for at once than is passed on. Ask for less."""


class Reused(Unacceptable):
    """The key was used for other work. Nothing was run; give each new work a key of its own."""


class Unkeepable(Unacceptable):
    """A result that cannot be kept: it cannot be encoded, or is too large."""

    value: object = None
    """The result, where the work was done all the same."""


class TooLarge(Unacceptable):
    """It is larger than the place it was meant for takes. Nothing was kept of it."""


class NotKept(Unacceptable):
    """It was done before, and its result was not kept. Nothing was run; do not repeat it."""


class Expired(Unacceptable):
    """The key is older than anything that is remembered. Nothing was run."""


class Broken(UnspoolError):
    """The installation needs a person."""

    exit_code = os.EX_CONFIG


class Misconfigured(Broken):
    """A setting is missing or impossible."""


class NoSpool(Misconfigured):
    """There is no spool of that name, and looking makes none."""

    exit_code = os.EX_NOINPUT


class Missing(Broken):
    """An optional part is not installed."""

    exit_code = os.EX_UNAVAILABLE


class PromiseBroken(Broken):
    """The spool is not set up to keep the promise asked of it."""


class CannotCreate(Broken):
    """A file, folder or socket cannot be made."""

    exit_code = os.EX_CANTCREAT


class InUse(Broken):
    """A spool of one process is another's just now."""

    exit_code = os.EX_TEMPFAIL


class OutcomeUnknown(Broken):
    """It may or may not have had its effect. It is not run again until somebody finds out."""


class Newer(Broken):
    """The spool was written by a newer unspool than this one."""


class Corrupt(Broken):
    """A record failed its checksum and was set aside."""

    exit_code = os.EX_DATAERR
