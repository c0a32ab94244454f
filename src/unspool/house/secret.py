"""The spool's secret on the move. With it go the keys: a repeat is known where the secret is.

    await secret_of(spool)              None: nobody has opened a relay over it yet
    mark_of(secret)                     tells one from another, and nothing of it
    await settle_in(spool, …)           give the new spool the secret, or say why that cannot be

A spool keeps keys that were made with its secret from who asks and what he calls it. Where another
relay has made a secret of its own already, what is brought is kept and delivered, and its receipts
hold; but a repeat by `Idempotency-Key` is not known there, and would be done a second time. So that
needs an operator's word.
"""

from __future__ import annotations

from hashlib import blake2b

from ..core.message import Instant
from ..custody import SECRET_KEY, secret_entry
from ..errors import Misconfigured
from ..spools.protocol import Spool


class OtherSecret(Misconfigured):
    """The new spool has a secret of its own, or none came along."""


async def secret_of(spool: Spool) -> bytes | None:
    [entry] = await spool.find([SECRET_KEY])
    return entry.answer.body if entry is not None and entry.answer is not None else None


def mark_of(secret: bytes | None) -> str:
    if secret is None:
        return ""
    return blake2b(secret, digest_size=8, person=b"unspool house").hexdigest()


async def settle_in(
    spool: Spool, *, secret: bytes | None, mark: str, now: Instant, other: bool, where: str
) -> str:
    """What was done about it, for people. Raises `OtherSecret` unless `other` is allowed."""
    if not mark:
        return ""  # there are no keys that were made with one
    theirs = await secret_of(spool)
    if theirs is None and secret is not None:
        await spool.accept([secret_entry(secret, now=now)])
        theirs = await secret_of(spool)
    if mark_of(theirs) == mark:
        return ""
    if other:
        return (
            "the new spool has another secret: receipts hold, but a repeat by Idempotency-Key is"
            " not known there, and is done again"
        )
    if theirs is None:
        raise OtherSecret(
            f"The secret did not come along, and {where} has none yet. Nothing was moved. Without"
            " it a repeat of what is moved is not known, and is done again. Export again without"
            " --no-secret, or say that it does not matter: --other-secret"
        )
    raise OtherSecret(
        f"A relay has already made another secret for {where}. Nothing was moved. A repeat of what"
        " is moved would not be known there, and would be done again. Move before the new relay"
        " starts for the first time, into a spool that does not exist yet; or say that it does not"
        " matter: --other-secret"
    )
