"""The spool's secret: an entry of its own that is never swept.

    secret_entry(body, now)      what keeps it
    SECRET_KEY                   under this key, in every spool
    HOME_KEY                     in a spool that had one already: that of the chain it stands in

Wherever the messages are, what their keys were made with is too, on every engine and for every
relay that shares it.
"""

from __future__ import annotations

from typing import Final

from ..core.lifecycle import State
from ..core.message import NEVER, Destination, Instant, Key, Message, Response
from .protocol import Entry

SECRET_KEY: Final = Key("unspool.secret........")
HOME_KEY: Final = Key("unspool.secret.of.home")
SECRETS: Final = frozenset({SECRET_KEY, HOME_KEY})
SECRET_BYTES: Final = 32


def secret_entry(body: bytes, *, now: Instant, key: Key = SECRET_KEY) -> Entry:
    return Entry(
        message=Message(
            key=key,
            fingerprint=b"",
            destination=Destination(""),
            accepted_at=now,
            expires_at=NEVER,
            nonce=b"",
        ),
        state=State.DELIVERED,
        due_at=NEVER,
        answer=Response(status=200, reason=b"", fields=(), body=body),
        settled_at=now,
        keep_until=NEVER,
        answer_until=NEVER,
    )
