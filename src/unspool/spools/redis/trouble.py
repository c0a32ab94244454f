"""Redis' trouble in the words of clause 12: what it said, what that means, and one command.

    translate(error, place, at=Stage.ASKED) -> Full | NotDone | Unavailable | Misconfigured

Whether a batch happened is known where no connection was had, and where Redis refuses the first
write of a script: for want of memory, of a disk, of replicas. What stops a script at a later write
(a right that the user lacks, a key that is somebody else's) leaves what it wrote before, for Redis
undoes nothing.
"""

from __future__ import annotations

import enum
from typing import Final

import redis.exceptions as trouble

from ...errors import Full, Misconfigured, NotDone, Unavailable, UnspoolError
from .url import Place


class Stage(enum.Enum):
    """How far a call had come."""

    CONNECTING = 0
    """It was not asked yet: nothing was done."""
    ASKED = 1
    """What the server says of it counts; its silence leaves a doubt."""
    TAKEN = 2
    """It was done, and may not be on the disk yet, whatever was said after that."""


_PASSWORD: Final = "does not take this user and password. Nothing was done. Try them: {cli} PING"
_ASKS: Final = (
    "asks for a password. Nothing was done. Give it one: unspool serve --spool"
    " redis://USER:PASSWORD@HOST/0"
)
_LOADING: Final = (
    "is still reading its data from the disk. Nothing was done. See how far it is: {cli} INFO"
    " persistence"
)
_TLS: Final = "Nothing was done, and nothing was said to it."
_TRUST: Final = (
    f"has a certificate that is not trusted. {_TLS} Name who made it, and call the server by a name"
    " that stands in it: unspool serve --spool 'rediss://HOST/0?ssl_ca_certs=ca.pem'. Try it:"
    " {cli} PING"
)
_NO_TLS: Final = (
    f"does not speak TLS, which rediss: asks for. {_TLS} Name its TLS port. Try it: {{cli}} PING"
)
SAID: Final[tuple[tuple[str, type[UnspoolError], str], ...]] = (
    (
        "allowed when used memory",
        Full,
        (
            "is out of memory (maxmemory). Nothing of this batch was done; what was "
            "accepted earlier is there, and is delivered. Make room: {cli} INFO memory"
        ),
    ),
    (
        "read only replica",
        NotDone,
        (
            "has become a replica and takes no writes. Nothing was done. Name its master: "
            "{cli} INFO replication"
        ),
    ),
    (
        "MISCONF",
        NotDone,
        (
            "cannot write to its disk, and so takes no writes. Nothing was done. See why: "
            "{cli} INFO persistence"
        ),
    ),
    ("BusyLoadingError", NotDone, _LOADING),
    ("CERTIFICATE_VERIFY_FAILED", Misconfigured, _TRUST),
    ("certificate verify failed", Misconfigured, _TRUST),
    ("WRONG_VERSION_NUMBER", Misconfigured, _NO_TLS),
    (
        "NOREPLICAS",
        NotDone,
        (
            "has fewer replicas than it was told to have. Nothing was done. See them: "
            "{cli} INFO replication"
        ),
    ),
    (
        "GONE ",
        NotDone,
        (
            "does not have the spool any more that was opened: it was flushed, restarted "
            "without its data, or another server answers. Nothing was done. If what it held "
            "is really lost, start unspool again, and it begins anew. See what is there: "
            "{cli} INFO keyspace"
        ),
    ),
    (
        "BUSY",
        NotDone,
        "is busy with somebody's script. Nothing was done. See which: {cli} SLOWLOG GET",
    ),
    (
        "MovedError",
        Misconfigured,
        (
            "is part of a cluster, where a spool's keys move from server to server. Nothing "
            "was done. Name a server of its own: unspool serve --spool redis://HOST/0"
        ),
    ),
    ("WRONGPASS", Misconfigured, _PASSWORD),
    ("invalid username-password", Misconfigured, _PASSWORD),
    ("invalid password", Misconfigured, _PASSWORD),
    (
        "without any password configured",
        Misconfigured,
        (
            "has no password, and was given one. Nothing was done. Leave it out: unspool "
            "serve --spool redis://HOST/0"
        ),
    ),
    ("NOAUTH", Misconfigured, _ASKS),
    ("uthentication required", Misconfigured, _ASKS),
    (
        "NoPermissionError",
        Misconfigured,
        (
            "does not let this user do what a spool needs. It may have been done in part; "
            "repeat it under its key. See who it is, and what it may: {cli} ACL WHOAMI"
        ),
    ),
    (
        "The user executing the script",
        Misconfigured,
        (
            "does not let this user touch what a spool needs. It may have been done in part; "
            "repeat it under its key. See who it is, and what it may: {cli} ACL WHOAMI"
        ),
    ),
    (
        "WRONGTYPE",
        Misconfigured,
        (
            "has keys under the spool's name that are another program's. It may have been done in "
            "part. Give the spool a name of its own: unspool serve --spool"
            " redis://HOST/0?name=orders"
        ),
    ),
)
"""What the server's word has in it, who must act, and the sentence; {cli} is how it is asked."""


def translate(error: Exception, place: Place, *, at: Stage) -> UnspoolError:
    where, cli = place.shown, place.cli
    said = str(error).rstrip(".")
    if at is Stage.TAKEN:
        return Unavailable(
            f"{where} took the batch, and broke off before it had synced it ({said}): it may or may"
            f" not be kept. Repeat it under its key. See what the disk does: {cli} INFO persistence"
        )
    named = f"{type(error).__name__} {said}"  # the library takes some of its words away
    for sign, kind, meaning in SAID:
        if sign in named:
            return kind(f"{where} {meaning.replace('{cli}', cli)}")
    if isinstance(error, trouble.TimeoutError | TimeoutError):
        said = "it does not answer in time"
        if at is Stage.CONNECTING and place.url.startswith("rediss:"):
            said += ", as a port without TLS does not either"
    if at is Stage.CONNECTING:
        return NotDone(
            f"{where} cannot be reached, or broke off ({said}). Nothing was done. Is it there:"
            f" {cli} PING"
        )
    if isinstance(error, trouble.ResponseError):
        return Unavailable(
            f"{where} refused: {said}. It may or may not have happened; repeat it under its key."
            f" See the server's log, and: {cli} PING"
        )
    return Unavailable(
        f"{where} cannot be reached, or broke off ({said}). What was under way may or may not have"
        f" happened; repeat it under its key. Is it there: {cli} PING"
    )
