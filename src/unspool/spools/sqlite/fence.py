"""The SQLite spool's fence (contract 6): may this lease still say anything of its entry?"""

from __future__ import annotations

from ...core.lifecycle import LIFE, Verdict
from ..protocol import Lease
from .schema import SPOILT, STATES

Token = tuple[int, int, int, bytes]
"""Of an entry as it is now: row, state, attempt, nonce."""


def is_under(token: Token | None, lease: Lease) -> bool:
    """The fence (6): is this very entry there, under its latest lease?

    The nonce tells a claim from the one that was forgotten before it under the same key.
    """
    if token is None:
        return False
    _, state, attempt, nonce = token
    entry = lease.entry
    return state < SPOILT and attempt == entry.attempt and nonce == entry.message.nonce


def may_settle(token: Token, lease: Lease, verdict: Verdict) -> bool:
    """The fence, and a state that the verdict can end."""
    return is_under(token, lease) and type(verdict) in LIFE[STATES[token[1]]]
