"""Co-commit: the record that a thing was done, in the transaction that does it. Exactly one effect.

    with once.commit(session, key, scope="orders") as done:
        if done.known:                   # it was done before, by this process or another
            return done.value
        session.add(Order(…))
        done.value = {"id": 7}           # what a repeat is given; None unless said

A run of several blocks names each: `running.commit(session, step="ship")`. Two of one name, or
without any, are refused, in a transaction that was joined as in their own: the second would be told
that it is known, and be skipped.

`session` is the application's own: see `commit_sessions` for which are understood, and for who
commits. An asynchronous one wants `async with`. `running.commit(session)` is the same with the key,
fingerprint and attempt of the run.

Promises. The record and the rows of the block are there together or not at all, whatever is killed
and when (F6). Of all who run under a key at once one commits; the others wait and are told what it
kept, or find out at their end and are undone: `Stale` (F4). What a block writes though it was told
that the thing is known is undone too. Another fingerprint under the key is `Reused`.

How. At its start the block looks for the record. In PostgreSQL those of one attempt take turns by
an advisory lock; in SQLite everybody does by its write lock. A higher attempt does not wait for a
lower one, for its owner may never wake: the record is inserted at the end, and the primary key
decides. So a paused owner holds nobody up and changes nothing. A run whose claim is no longer its
own by its own clock is `Stale` before it commits.

`Crossed` is raised where the database undid the transaction because of another (serialization
failure, deadlock, SQLite busy): run the whole of it again. At REPEATABLE READ and SERIALIZABLE that
is what those get who came while another was at work.

Does not: undo what the block did elsewhere. A mail that was sent is sent; use `child_key` there.

Bugs: an owner that is paused between its last look and the database's commit, while its successor
has answered without a co-commit, still commits; and in a transaction that was joined that look is
at the end of the block. A run that goes through a block again, because nobody told it whether the
transaction that it had joined was committed, is refused where it was; its next attempt is told that
it is known. `encode` and `decode` are not awaited. Values come back as plain data
(dict, list, str) unless `type` says what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from itertools import chain, repeat
from time import monotonic
from types import TracebackType
from typing import Any, Final

from ..clock import SystemClock
from ..errors import Busy, Misconfigured, Reused, Stale
from .arguments import NAME_MAX_CHARS, named
from .commit_drivers import Ran
from .commit_sessions import Session, Steps, drive, pause, session_of, trouble
from .kept import KEPT_MAX_BYTES, pack, unpack

KEEP_MS: Final = 30 * 24 * 3600 * 1000
WAIT_MS: Final = 10_000
POLL_MS: Final = (2, 2, 4, 8, 16, 32)
"""How long to wait between looks whether the one who is at work has ended; the last goes on."""
VALUE_MAX_BYTES: Final = KEPT_MAX_BYTES

LOCK: Final = "SELECT pg_try_advisory_xact_lock(:number)"
FORGET: Final = (
    "DELETE FROM unspool_once WHERE scope = :scope AND key = :key AND keep_until <= :now"
)
"""In SQLite this also takes the write lock, whether there is anything to forget or not."""
LOOK: Final = (
    "SELECT fingerprint, value, attempt, keep_until FROM unspool_once"
    " WHERE scope = :scope AND key = :key"
)
WRITE: Final = (
    "INSERT INTO unspool_once (scope, key, name, fingerprint, attempt, value, at, keep_until)"
    " VALUES (:scope, :key, :name, :fingerprint, :attempt, :value, :at, :keep_until)"
    " ON CONFLICT (scope, key) DO NOTHING RETURNING attempt"
)


class Blocks:
    """Of one run: which blocks are open, which it has committed, and which it has written into a
    transaction that is somebody else's to commit."""

    __slots__ = ("_joined", "_kept", "_open")

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._kept: set[str] = set()
        self._joined: set[str] = set()

    def begin(self, step: str) -> None:
        """Raises `Misconfigured` where two would be taken for one."""
        if step in self._open or step in self._kept:
            raise _second(step)
        self._open.add(step)

    def found(self, step: str) -> None:
        """The record of this very run is there. Raises `Misconfigured` where it was written into a
        transaction that was joined: it is no news then."""
        if step in self._joined:
            raise _second(step)

    def end(self, step: str, *, written: bool, joined: bool) -> None:
        self._open.discard(step)
        if written:
            # What was joined may yet be undone by whoever opened it, and be tried again.
            (self._joined if joined else self._kept).add(step)


def _second(step: str) -> Misconfigured:
    which = f"co-commit {step!r}" if step else "co-commit without a name"
    return Misconfigured(
        f"This run has had its {which} already, and the second would be taken for the first."
        " Nothing was run by it. Name each of them:"
        ' running.commit(session, step="ship")'
    )


class Commit:
    """One piece of work and its record, in one transaction: `with`, or `async with`."""

    def __init__(
        self,
        session: Any,
        key: object,
        *,
        scope: str,
        fingerprint: bytes = b"",
        attempt: int = 1,
        name: str | None = None,
        type: Any = Any,
        encode: Callable[[Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
        wait_ms: int = WAIT_MS,
        keep_ms: int = KEEP_MS,
        held: Callable[[], bool] | None = None,
        step: str = "",
        blocks: Blocks | None = None,
    ) -> None:
        """`key` is a str, bytes, int or UUID. `scope` is whose keys these are: `orders`. `name` is
        the key as people know it.

        `wait_ms` is how long to wait for another who does the same thing just now; then `Busy`.
        `keep_ms` is for how long the record stands: after that a repeat runs again. `encode` makes
        of the value what is kept, and `decode` the value of that: an id, and the row by its id.
        `held` says whether the right to run is still ours. `step` is which of several blocks of
        one run this is, and `blocks` are those that there were.
        """
        key_ = named(key)
        for what, text in (("key", key_), ("scope", scope), ("name", name or ""), ("step", step)):
            _refuse_unwritable(what, text)
        self.known = False
        """Was it done before? Then do not do it again."""
        self.value: Any = None
        """What was kept; or, set within the block, what shall be."""
        self.attempt = attempt
        """Of the run that did it."""
        self._session: Final[Session] = session_of(session)
        self._scope, self._key = scope, f"{key_}#{step}" if step else key_
        self._name = key_ if name is None else name
        self._step, self._blocks = step, blocks or Blocks()
        self._fingerprint, self._type = fingerprint, type
        self._encode, self._decode = encode, decode
        self._wait_ms, self._keep_ms, self._held = wait_ms, keep_ms, held
        self._clock: Final = SystemClock()

    @property
    def joined(self) -> bool:
        """Is the transaction somebody else's? Then nothing is kept until they commit."""
        return self._session.joined

    # --- its start --------------------------------------------------------------------------

    def _enter(self) -> Steps[None]:
        self._blocks.begin(self._step)
        try:
            yield from self._begin()
        except BaseException:
            self._blocks.end(self._step, written=False, joined=self.joined)
            raise

    def _begin(self) -> Steps[None]:
        until = monotonic() + self._wait_ms / 1000
        pauses = chain(POLL_MS, repeat(POLL_MS[-1]))
        while True:
            try:
                yield self._session.begin()
            except BaseException as error:
                raise_as_ours(error)
                raise
            try:
                taken = yield from self._take()
                while not taken and not self._session.whole and monotonic() < until:
                    yield pause(self._session, next(pauses))
                    taken = yield from self._take()
                if taken:
                    yield from self._look()
                    return
                if monotonic() >= until:
                    raise Busy(
                        f"Somebody else is at work under the key {self._name!r} of {self._scope!r}."
                        " Nothing was run. Ask again in a moment."
                    )
            except BaseException as error:
                yield from self._undo(error)
                raise_as_ours(error)
                raise
            # Outside of any transaction, so that the next look sees what was committed meanwhile.
            yield self._session.undo(None)
            yield pause(self._session, next(pauses))

    def _take(self) -> Steps[bool]:
        """Our turn, among those of the same attempt?"""
        if self._session.dialect == "postgresql":
            ran: Ran = yield self._session.run(LOCK, {"number": self._number()})
            return bool(ran[0][0])
        if self._session.dialect == "sqlite":
            return True
        raise Misconfigured(
            f"Co-commit does not know how to take turns in {self._session.dialect}, so nothing was"
            " run. It knows PostgreSQL and SQLite."
        )

    def _number(self) -> int:
        digest = blake2b(digest_size=8, person=b"unspool commit")
        for part in (self._scope.encode(), self._key.encode(), b"%d" % self.attempt):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return int.from_bytes(digest.digest(), "big", signed=True)

    def _look(self) -> Steps[None]:
        """Was it done before?"""
        which = {"scope": self._scope, "key": self._key}
        now = self._clock.now()
        if self._session.dialect == "sqlite":
            yield self._session.run(FORGET, {**which, "now": now})
        ran: Ran = yield self._session.run(LOOK, which)
        if not ran:
            return
        fingerprint, value, attempt, keep_until = ran[0]
        if keep_until <= now:  # by its time, not by what the sweep has got to (J6)
            yield self._session.run(FORGET, {**which, "now": now})
            return
        if bytes(fingerprint) != self._fingerprint:
            raise Reused(
                f"The key {self._name!r} of {self._scope!r} was used for other work. Nothing was"
                " run, and that work is unharmed. Give each new work a key of its own."
            )
        if attempt == self.attempt:
            self._blocks.found(self._step)
        found = unpack(bytes(value), self._type)
        self.value = found if self._decode is None else self._decode(found)
        self.attempt = attempt
        self.known = True

    # --- its end ----------------------------------------------------------------------------

    def _leave(self, error: BaseException | None) -> Steps[None]:
        written = False
        try:
            yield from self._end(error)
            written = error is None and not self.known
        finally:
            self._blocks.end(self._step, written=written, joined=self.joined)

    def _end(self, error: BaseException | None) -> Steps[None]:
        if error is not None:
            yield from self._undo(error)
            if not self.joined:
                raise_as_ours(error)
        elif self.known:
            yield self._session.undo(None)
        else:
            try:
                yield from self._write()
            except BaseException as trouble_:
                yield from self._undo(trouble_)
                raise_as_ours(trouble_)
                raise
            try:
                yield self._session.keep()
            except BaseException as trouble_:
                yield from self._abandon(trouble_)
                raise_as_ours(trouble_)
                raise

    def _write(self) -> Steps[None]:
        value = self.value if self._encode is None else self._encode(self.value)
        packed = pack(value, max_bytes=VALUE_MAX_BYTES)
        if self._session.ended:
            raise Misconfigured(
                "The transaction was ended within the block, so what was done in it has no record."
                " Leave commit and rollback to the block, or to whoever opened the transaction."
            )
        if self._held is not None and not self._held():
            raise self._stale("the right to run under it has passed on meanwhile")
        now = self._clock.now()
        values = {
            "scope": self._scope,
            "key": self._key,
            "name": self._name,
            "fingerprint": self._fingerprint,
            "attempt": self.attempt,
            "value": packed,
            "at": now,
            "keep_until": now + self._keep_ms,
        }
        ran: Ran = yield self._session.run(WRITE, values)
        if not ran:
            raise self._stale("another run under it was there first")

    def _stale(self, why: str) -> Stale:
        return Stale(
            f"Attempt {self.attempt} under the key {self._name!r} of {self._scope!r} came too late:"
            f" {why}. What it wrote is undone. Run it again to be given what the other kept."
        )

    def _abandon(self, error: BaseException) -> Steps[None]:
        try:
            yield self._session.abandon()
        except Exception as another:
            error.add_note(f"and the transaction could not be undone: {another}")

    def _undo(self, error: BaseException) -> Steps[None]:
        """Take back; if that fails, too, it is because the connection is gone, and all with it."""
        try:
            yield self._session.undo(error)
        except Exception as another:
            error.add_note(f"and the transaction could not be undone: {another}")

    # --- with, and async with ---------------------------------------------------------------

    def __enter__(self) -> Commit:
        self._right_form(waits=False)
        drive(self._session, self._enter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        drive(self._session, self._leave(error))

    async def __aenter__(self) -> Commit:
        self._right_form(waits=True)
        await drive(self._session, self._enter())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await drive(self._session, self._leave(error))

    def _right_form(self, *, waits: bool) -> None:
        if self._session.waits is not waits:
            right = "async with" if self._session.waits else "with"
            raise Misconfigured(f"This session wants: {right} once.commit(…). Nothing was run.")


def _refuse_unwritable(what: str, text: str) -> None:
    """What a database would refuse in the middle of it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        pass
    else:
        if len(text) <= NAME_MAX_CHARS and "\0" not in text:
            return
    raise Misconfigured(
        f"A {what} has at most {NAME_MAX_CHARS} characters, and no NUL; this one is not so."
    )


def raise_as_ours(error: BaseException) -> None:
    """Raise our own error where the database's is one that we have a name for."""
    ours = trouble(error)
    if ours is not None:
        raise ours from error
