"""What the verbs make of the messages of a NATS bucket. Pure: facts in, changes out.

answer_to(old, entry)         New, Duplicate or Mismatch (2, 3)
leased(…) · settled(…) · restating(…) · without_answer(…)     what is to be written
under · still                 is it still whose it was? (6)
"""

from __future__ import annotations

from msgspec.structs import replace

from ...core.lifecycle import State, Verdict
from ...core.message import Instant
from ...core.record import Status
from ..keyed.rows import changed
from ..memory import after_verdict, bare
from ..protocol import Acceptance, Duplicate, Entry, Lease, Mismatch, New
from .records import Change, Facts, Known, line_of, parts_of, restated, waits, written

Row = tuple[int, Facts]
"""A revision, and what it says."""


def answer_to(old: Entry | None, entry: Entry) -> Acceptance:
    """What becomes of an entry whose key has this one by now (2, 3)."""
    if old is None:
        return New(entry)
    if old.message.fingerprint != entry.message.fingerprint:
        return Mismatch(bare(old))
    if old.state is not State.CLAIMED or old.leased_until > entry.message.accepted_at:
        return Duplicate(bare(old))
    return New(replace(entry, attempt=old.attempt + 1))


def under(facts: Facts, lease: Lease) -> bool:
    """Is this still the entry that was leased, and the lease its latest? (6)"""
    return facts.attempt == lease.entry.attempt and facts.nonce == lease.entry.message.nonce


def still(row: Row | None, lease: Lease) -> bool:
    return row is not None and under(row[1], lease)


def line_with(before: Facts, after: Facts | None) -> str:
    """The line whose register is written: of what waits in it, before or afterwards."""
    if waits(before) or (after is not None and waits(after)):
        return line_of(before.destination, before.order_key)
    return ""


def restating(
    facts: Facts, known: Known, *, body: bytes | None = None, line_seen: int | None = None
) -> Change:
    """Other facts, and the same payload, unless another is given. `line_seen`: it is only so while
    its line's register is of that revision."""
    return Change(
        facts.key, known.revision, facts, known.body if body is None else body,
        line=line_with(known.facts, facts), line_expected=line_seen,
    )  # fmt: skip


def leased(
    entry: Entry, known: Known, *, until: Instant, seize: bool, line_seen: int | None
) -> tuple[Lease, Change]:
    """The next attempt of it, or a seizure (15, 16)."""
    facts = known.facts
    harmless = facts.leased_until == 0 or facts.seized
    after = replace(
        facts, place=facts.place or known.revision, attempt=facts.attempt + 1,
        leased_until=until, seized=seize and harmless,
    )  # fmt: skip
    lease = Lease(changed(entry, attempt=after.attempt, leased_until=until), until, not harmless)
    return lease, restating(after, known, line_seen=line_seen)


def settled(
    row: Row, facts: Facts, lease: Lease, verdict: Verdict, known: Known | None, part_bytes: int
) -> Change | None:
    """What the verdict makes of it. `facts`: after the verdicts before, of this batch. None: of
    what waits again more is needed, and `known` is not of this revision. Raises `Spoilt`."""
    revision, before = row
    place = before.place or revision
    line = line_with(before, None)
    # The envelope is what it was; what can have changed since is in the facts.
    entry = replace(
        lease.entry, state=State(facts.state), due_at=facts.due_at, attempt=facts.attempt,
        leased_until=facts.leased_until, keep_until=facts.keep_until,
        answer_until=facts.answer_until, answer=None,
    )  # fmt: skip
    after = after_verdict(entry, verdict)
    if after is None:
        return Change(before.key, revision, None, gone=parts_of(before), line=line)
    if after.state is not State.WAITING:
        return written(
            after, place=place, expected=revision, part_bytes=part_bytes,
            before=before, line=line,
        )  # fmt: skip
    if known is None or known.revision != revision:
        return None
    status = Status(after.trail, after.reason, after.stored, after.settled_at)
    waiting = replace(
        before, place=place, state=int(State.WAITING), due_at=after.due_at,
        leased_until=Instant(0), keep_until=Instant(0), seized=False,
    )  # fmt: skip
    return restating(waiting, known, body=restated(known, status))


def without_answer(known: Known) -> Change:
    """It was kept long enough; the fact stays (11). Raises `Spoilt`."""
    facts = known.facts
    after = replace(facts, place=facts.place or known.revision, answered=False, parts=0)
    return Change(
        facts.key, known.revision, after, restated(known, None, large=b""),
        gone=parts_of(facts),
    )  # fmt: skip
