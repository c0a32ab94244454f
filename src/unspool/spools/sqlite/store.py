"""SqliteStore: the SQLite spool for whoever may block. The contract's verbs, as plain functions.

    store = SqliteStore.open(path)
    store.accept(entries) · lease(…) · settle(…) · find(…) · …        see `protocol`
    store.close()

Every write is one transaction, begun IMMEDIATE and synced before the verb returns; each reads what
it needs, decides in Python, and writes in few statements. May be called from several threads, which
then take turns; several processes may have one file open.

A file that was removed or replaced while it is open takes nothing more, for it goes when we go; and
where it has only moved, nothing at all is done (`place`).

A record that fails its checksum is set aside at the first look: it is never leased again, `find`
and `accept` of its key raise `Corrupt` (fail closed: it may have been applied), `corrupt` counts.

Does not: gather callers into batches (`committer` does), or wait for arrivals.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import apsw
import msgspec

from ...core.lifecycle import LIFE, Verdict
from ...core.message import Destination, Instant, Key
from ...errors import Corrupt, NotDone
from ..protocol import (
    Acceptance,
    Damaged,
    Entry,
    LaneDue,
    Lease,
    New,
    Query,
    Tally,
)
from ..taking import lend, taken
from ..thread import Outcome, Work, alone
from . import aside, read
from .fence import is_under, may_settle
from .file import Opened, close_file, open_file, translate
from .heal import REINDEX, healing
from .read import Apart, SpoiltRows, encode_json, entry_or_give_up, names
from .read import rows as read_rows
from .schema import (
    COUNT_SPOILT,
    EXPIRED,
    FIND,
    FORGET_ANSWERS,
    LEASABLE,
    LEASE,
    RENEW,
    RENEWABLE,
    SEIZABLE,
    SEIZE,
    STATES,
    SWEEPABLE,
    TOKENS,
    abandoned,
    entry_of,
)
from .write import delete, insert, write_ends

SWEEP_ROWS: Final = 500
"""Rows forgotten in one transaction: others wait behind it."""

_Line = tuple[Destination, str]
_decode_tokens = msgspec.json.Decoder(list[tuple[Key, int, int, int, str]]).decode


class SqliteStore:
    def __init__(self, opened: Opened, path: Path) -> None:
        self.path: Final = path
        self.promises: Final = opened.promises
        self.sole: Final = opened.sole
        self._opened = opened
        self._db = opened.writer
        self._writing = threading.Lock()
        self._finding = threading.Lock()
        self._browsing = threading.Lock()
        self._closed = False
        self._joined = 0  # the thread in which several verbs are one transaction just now
        self._healed = False
        self._version = self._data_version()
        self.corrupt: int = self._one(COUNT_SPOILT)
        """Records set aside."""

    @classmethod
    def open(cls, path: Path, *, create: bool = True, test_hook_no_sync: bool = False) -> Self:
        """`test_hook_no_sync` breaks the promise on purpose, so that a test of it can fail."""
        path = path.absolute()  # whoever has us may go to another folder
        opened = open_file(path, create=create, synced=not test_hook_no_sync)
        try:
            return cls(opened, path)
        except apsw.Error as error:
            close_file(opened)
            raise translate(error, path=path, committing=False) from error

    def close(self) -> None:
        with self._writing, self._finding, self._browsing:
            if not self._closed:
                self._closed = True
                close_file(self._opened)

    # -- writing ---------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, synced at the end (1, 8)."""
        if self._joined == threading.get_ident():  # it is part of a larger one
            yield
            return
        with self._writing:
            self._check_open()
            self._opened.place.look()
            committing = False
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                committing = True
                self._db.execute("COMMIT")
            except BaseException as error:
                self._roll_back()
                if isinstance(error, apsw.Error):
                    raise translate(error, path=self.path, committing=committing) from error
                raise

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except apsw.Error:
            pass  # what made us roll back is the news; SQLite undoes the rest by itself

    def together(self, verbs: Sequence[Work]) -> list[Outcome]:
        """Several verbs in one transaction. Where one of them has trouble, each for itself."""
        corrupt = self.corrupt
        try:
            with self._transaction():
                self._joined = threading.get_ident()
                try:
                    results = [verb() for verb in verbs]
                except Exception as error:
                    raise Apart from error
                finally:
                    self._joined = 0
        except Apart:
            self.corrupt = corrupt
            return [alone(verb) for verb in verbs]
        except Exception as error:
            return [(None, error) for _ in verbs]
        return [(result, None) for result in results]

    def _check_open(self) -> None:
        if self._closed:
            raise NotDone(
                f"The spool {self.path} is closed. Nothing of this was done; what was accepted is"
                " on the disk. Start again: unspool serve"
            )

    @healing
    def accept(self, entries: Sequence[Entry], /) -> list[Acceptance]:
        self._opened.place.look(takes=True)
        try:
            with self._transaction():
                return self._accept(entries)
        except SpoiltRows as found:
            if self._joined == threading.get_ident():
                raise
            raise self._fail_closed(found.ids) from found

    def _all_new(self, entries: Sequence[Entry]) -> list[Acceptance] | None:
        """Nearly always nobody knows any of these keys: then the index says so while it is written.

        None: nothing was done, and each is to be looked at.
        """
        if len({entry.message.key for entry in entries}) < len(entries):
            return None
        try:
            insert(self._db, entries)
        except apsw.ConstraintError:
            if self._joined == threading.get_ident():
                raise  # it took the others' work along
            self._db.execute("BEGIN IMMEDIATE")  # it was rolled back with its transaction
            return None
        return [New(entry) for entry in entries]

    def _accept(self, entries: Sequence[Entry]) -> list[Acceptance]:
        if (answers := self._all_new(entries)) is not None:
            return answers
        known: dict[Key, Entry] = {}
        ids: dict[Key, int] = {}
        keys = names([entry.message.key for entry in entries])
        for row in read_rows(self._db, FIND, (keys,)):
            ids[row[1]] = row[0]
            known[row[1]] = entry_or_give_up(row)
        answers, fresh = taken(entries, known)
        gone = [ids[entry.message.key] for entry in fresh if entry.message.key in ids]
        if gone:
            delete(self._db, gone)
        if fresh:
            insert(self._db, fresh)
        return answers

    @healing
    def lease(
        self, wants: Mapping[Destination, int], /, *, now: Instant, until: Instant
    ) -> list[Lease]:
        with self._transaction():
            rows: list[Any] = []
            for destination, limit in wants.items():
                rows += read_rows(self._db, LEASABLE, (destination, now, limit))
            return self._lease(rows, until)

    @healing
    def seize(self, keys: Sequence[Key], /, *, now: Instant, until: Instant) -> list[Lease | None]:
        with self._transaction():
            rows = read_rows(self._db, SEIZABLE, (names(keys), now))
            taken = self._lease(rows, until, by=SEIZE)
            leases = {lease.entry.message.key: lease for lease in taken}
            return [leases.pop(key, None) for key in keys]  # a key given twice is seized once

    @healing
    def expire(self, *, now: Instant, until: Instant, limit: int) -> list[Lease]:
        with self._transaction():
            rows = read_rows(self._db, EXPIRED, (now, limit))
            return self._lease(rows, until, by=SEIZE, whole=False)

    def _lease(
        self, rows: Sequence[Any], until: Instant, *, by: str = LEASE, whole: bool = True
    ) -> list[Lease]:
        strays = aside.strays(self._db, rows)
        rows = [row for row in rows if row[0] not in strays]
        lent = lend(rows, until, entry_of=entry_of, abandoned=abandoned, whole=whole)
        for id_ in (*lent.spoilt, *strays):
            self._set_aside(id_)
        if lent.ids:
            self._db.execute(by, (until, encode_json(lent.ids).decode()))
        return lent.leases

    @healing
    def settle(self, settlements: Sequence[tuple[Lease, Verdict]], /) -> list[bool]:
        with self._transaction():
            keys = [lease.entry.message.key for lease, _ in settlements]
            listed: Any
            [[listed]] = self._db.execute(TOKENS, (names(list(dict.fromkeys(keys))),)).fetchall()
            tokens = {
                key: (id_, state, attempt, bytes.fromhex(nonce))
                for key, id_, state, attempt, nonce in _decode_tokens(listed)
            }
            kept: list[bool] = []
            ends: dict[int, tuple[Lease, Verdict]] = {}
            for lease, verdict in settlements:
                key = lease.entry.message.key
                token = tokens.get(key)
                good = token is not None and may_settle(token, lease, verdict)
                kept.append(good)
                if token is None or not good:
                    continue  # I3
                if token[0] in ends:  # settled twice in one batch: the first must be there first
                    write_ends(self._db, ends)
                    ends = {}
                ends[token[0]] = (lease, verdict)
                after = LIFE[STATES[token[1]]][type(verdict)]
                if after is None:
                    del tokens[key]
                else:
                    tokens[key] = (token[0], after.value, *token[2:])
            if ends:
                write_ends(self._db, ends)
            return kept

    @healing
    def renew(self, leases: Sequence[Lease], /, *, until: Instant) -> list[bool]:
        with self._transaction():
            listed = names(list(dict.fromkeys(lease.entry.message.key for lease in leases)))
            held = {row[0]: row[1:] for row in self._db.execute(RENEWABLE, (listed,))}
            kept = [is_under(held.get(lease.entry.message.key), lease) for lease in leases]
            ids = [
                held[lease.entry.message.key][0]
                for lease, good in zip(leases, kept, strict=True)
                if good
            ]
            if ids:
                self._db.execute(RENEW, (until, encode_json(ids).decode()))
            return kept

    @healing
    def sweep(self, *, now: Instant, limit: int) -> int:
        went = 0
        while went < limit:
            count = min(SWEEP_ROWS, limit - went)
            with self._transaction():
                rows: list[Any] = self._db.execute(SWEEPABLE, (now, count)).fetchall()
                entries = [id_ for id_, keep_until in rows if keep_until <= now]
                answers = [id_ for id_, keep_until in rows if keep_until > now]
                if entries:
                    delete(self._db, entries)
                if answers:
                    for statement in FORGET_ANSWERS:
                        self._db.execute(statement, (encode_json(answers).decode(),))
            went += len(rows)
            if len(rows) < count:
                break
        return went

    # -- what is spoilt --------------------------------------------------------------------------

    def _set_aside(self, id_: int) -> None:
        """Out of everybody's way, with all its bytes (12). Its line goes on without it."""
        self.corrupt += aside.set_aside(self._db, id_)

    def heal(self) -> bool:
        if self._healed or self._joined == threading.get_ident():
            return False
        self._healed = True
        with self._transaction():
            self._db.execute(REINDEX)
        return True

    def _fail_closed(self, ids: Sequence[int]) -> Corrupt:
        with self._transaction():
            for id_ in ids:
                self._set_aside(id_)
        return aside.corrupt(self.path, len(ids))

    # -- reading ---------------------------------------------------------------------------------

    @contextmanager
    def _reading(self, lock: threading.Lock) -> Iterator[None]:
        with lock:
            self._check_open()
            try:
                yield
            except apsw.Error as error:
                raise translate(error, path=self.path, committing=True) from error

    @healing
    def find(self, keys: Sequence[Key], /) -> Sequence[Entry | None]:
        with self._reading(self._finding):
            entries, spoilt = read.find(self._opened.finder, keys)
        if spoilt:
            raise self._fail_closed(spoilt)
        return entries

    @healing
    def survey(self, *, after: Destination | None, limit: int) -> Sequence[LaneDue]:
        with self._reading(self._finding):
            lanes, spoilt = read.survey(self._opened.finder, after, limit)
        if spoilt:
            self._fail_closed(spoilt)  # set aside; the others are served
        return lanes

    def browse(
        self, query: Query, /, *, after: Key | None, limit: int, requests: bool = False
    ) -> Sequence[Entry]:
        with self._reading(self._browsing):
            entries, spoilt = read.browse(self._opened.browser, query, after, limit, requests)
        if spoilt:
            self._fail_closed(spoilt)  # set aside; the people see the rest
        return entries

    def tally(self, edges: Sequence[Instant], /) -> Sequence[Tally]:
        with self._reading(self._browsing):
            return read.tally(self._opened.browser, edges)

    def damaged(self, *, after: str | None, limit: int) -> Sequence[Damaged]:
        with self._reading(self._browsing):
            return aside.damaged(self._opened.browser, self.path, after=after, limit=limit)

    @healing
    def discard(self, marks: Sequence[str], /) -> list[bool]:
        with self._transaction():
            gone = aside.discard(self._db, marks)
            self.corrupt = self._one(COUNT_SPOILT)
            return gone

    def changed(self) -> bool:
        """Has another process changed the file since this was last asked?"""
        with self._reading(self._writing):
            before, self._version = self._version, self._data_version()
        return self._version != before

    def _data_version(self) -> int:
        return self._one("PRAGMA data_version")

    def _one(self, statement: str) -> int:
        number: Any
        [[number]] = self._db.execute(statement).fetchall()
        return int(number)
