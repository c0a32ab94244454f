"""Taking: what becomes of a batch of newcomers, given what is known of their keys (2, 3). Pure.

answers, fresh = taken(entries, known)     `fresh`: what is to be written; known keys among them
                                           are claims that were taken over, and go
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from ..core.lifecycle import State
from ..core.message import Key
from .memory import bare
from .protocol import Acceptance, Duplicate, Entry, Mismatch, New


def taken(
    entries: Sequence[Entry], known: Mapping[Key, Entry]
) -> tuple[list[Acceptance], list[Entry]]:
    """The answers in the order of the entries, and what is new in the order of acceptance."""
    there = dict(known)
    fresh: dict[Key, Entry] = {}
    answers: list[Acceptance] = []
    for entry in entries:
        key = entry.message.key
        old = there.get(key)
        if old is not None:
            if old.message.fingerprint != entry.message.fingerprint:
                answers.append(Mismatch(bare(old)))
                continue
            if old.state is not State.CLAIMED or old.leased_until > entry.message.accepted_at:
                answers.append(Duplicate(bare(old)))
                continue
            entry = replace(entry, attempt=old.attempt + 1)  # taken over
            fresh.pop(key, None)  # it moves to the end of the order
        there[key] = fresh[key] = entry
        answers.append(New(entry))
    return answers, list(fresh.values())
