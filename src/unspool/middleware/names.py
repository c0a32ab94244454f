"""Names: two applications that share a spool need two, or one is given the other's answers.

    await take_name(spool, name=…, owner=…, now=…)      it is this application's, or it is refused

A name that was given is believed, and never comes here. Where none was given, all applications have
the same one, and are told apart by the package of their scope function; who has the name is
remembered in the spool for good. A function that is renamed or moves within its package is still
the same application. A package that is renamed is not, as far as we can see: the refusal says how
to go on with the same keys.

Bugs: two applications in one package, or called `main` both, are one until they are given names.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import blake2b
from typing import Final

from ..core.lifecycle import State
from ..core.message import NEVER, Destination, Instant, Key, Message, Response
from ..errors import Misconfigured
from ..spools.protocol import Entry, Mismatch, Spool

PREFIX: Final = "unspool.app."


async def take_name(spool: Spool, *, name: str, owner: str, now: Instant, scope: str = "") -> None:
    """Raises `Misconfigured` where another application has it; or has this scope of it."""
    taken = f"{name}\0{scope}" if scope else name
    digest = blake2b(taken.encode(), digest_size=8, person=b"unspool app").digest()
    entry = Entry(
        message=Message(
            key=Key(PREFIX + urlsafe_b64encode(digest).decode()[:10]),
            fingerprint=blake2b(owner.encode(), digest_size=16).digest(),
            destination=Destination(""),
            accepted_at=now,
            expires_at=NEVER,
            nonce=b"",
            name=name,
        ),
        state=State.DELIVERED,
        due_at=NEVER,
        answer=Response(status=200, reason=b"", fields=(), body=owner.encode()),
        settled_at=now,
        keep_until=NEVER,
        answer_until=NEVER,
    )
    [known] = await spool.accept([entry])
    if isinstance(known, Mismatch):
        [other] = await spool.find([entry.message.key])
        who = other.answer.body.decode() if other and other.answer else "another"
        which = f"of {scope!r} " if scope else ""
        raise Misconfigured(
            f"The keys {which}in this spool belong to the application {who!r}, and this is"
            f" {owner!r}; neither was given a name. Nothing was run under a key, and what {who!r}"
            " remembers is kept. If this is the same application, renamed, say"
            f' name="{name}" and it goes on with those keys; if it is another one, give it a name'
            f' of its own: name="{owner}"'
        )
