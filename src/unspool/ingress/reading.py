"""Reading: the bytes of one connection become requests (RFC 9112), strictly and within limits.

    reading.feed(data)      what came; calls the sink's `arrived` for each request, in order
    reading.phase           IDLE, HEAD or BODY: what is half here, for whoever watches the clock
    reading.give_up(…)      no more of this connection is wanted

An ordinary request that has come whole, alone and in one piece, takes the short road
(`core.heads`). All else llhttp (httptools) parses; `strict` holds it to the rules it lets slip.
A whole body up to `body_max_bytes` arrives with its request; a larger one arrives as soon as that
is known, with a `StreamedBody` for the remainder. A request that breaks off before it is whole
does not arrive at all. What can never become a request arrives once, as a `Refusal`, in its turn;
after it, and after a request that ends its connection, the reader is `deaf` and only counts what it
throws away.

Known: several spaces in a request line, and RTSP's and ICE's versions, are found by looking for the
right line in the data at hand. A pipelined request can hide a wrong one if the right one stands in
a body that came with it. It gains nothing: heads are never passed on as they came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from ..core import heads
from ..core.fields import HEADS
from ..core.kinds import Kinds
from ..core.message import Request
from .limits import Limits
from .parsing import KEEP, OLD, TOO_MANY_BODIES, Ledger, Parsing, Sink, head_too_large
from .strict import Refusal, grumble, known_hosts

__all__ = ["BODY", "HEAD", "IDLE", "KEEP", "OLD", "Ledger", "Reading", "Sink"]

IDLE, HEAD, BODY = "idle", "head", "body"

Short = Callable[[bytes, Kinds], heads.Asked | None]

SLICE_BYTES: Final = 16 * 1024
"""Larger reads are parsed in pieces, so that a flood of tiny requests is noticed within one."""


class Reading(Parsing):
    """The reading half of one connection."""

    __slots__ = ("_easy_bytes", "_short", "_slack", "_unfed", "thrown_away_bytes")

    def __init__(
        self, sink: Sink, limits: Limits, ledger: Ledger, *, short: Short = heads.request
    ) -> None:
        super().__init__(sink, limits, ledger)
        self._short = short
        self._easy_bytes = min(SLICE_BYTES, limits.head_max_bytes)
        self._slack = 0
        self._unfed = b""
        self.thrown_away_bytes = 0

    def __repr__(self) -> str:
        return f"<Reading {'deaf' if self.deaf else self.phase}>"

    @property
    def phase(self) -> str:
        if self.deaf or (self._at_rest and not self._unfed):
            return IDLE
        return BODY if self.in_body else HEAD

    @property
    def message(self) -> object:
        """Something that is another for each message, for whoever looks only now and then."""
        return self._fields

    @property
    def wants_more(self) -> bool:
        """Is there room for more bytes?"""
        stream = self._stream
        return not self._unfed and (stream is None or not stream.full)

    @property
    def waits_for_us(self) -> bool:
        """Does the sender wait for our 100, or we for our own reader? Then no clock runs."""
        return self.expecting or not self.wants_more

    # data

    def feed(self, data: bytes) -> None:
        if self.deaf:
            self.thrown_away_bytes += len(data)
            return
        if len(data) > self._easy_bytes or self._unfed:
            self._feed_in_slices(data)
            return
        if self._at_rest and (asked := self._short(data, HEADS)) is not None:
            method, target, fields, host, body = asked
            limits = self._limits
            if (
                host in known_hosts
                and len(fields) <= limits.fields_max
                and len(body) <= limits.body_max_bytes
            ):
                self._arrived(Request(method, target, fields, body), KEEP)
                return
        rest = self._feed_once(data)
        if rest is not None:
            self._decline_offer(rest)

    def _feed_in_slices(self, data: bytes) -> None:
        if self._unfed:
            data = self._unfed + data
            self._unfed = b""
            self._hold(self._half_bytes)
        size = len(data)
        begin = 0
        while begin < size:
            if self.deaf:
                self.thrown_away_bytes += size - begin
                return
            # What is left of a body of known length holds no requests: no need to go carefully.
            left = self._length - self.body_bytes if self.in_body else 0
            step = max(self._easy_bytes, left)
            if self._sink.crowded():
                self._unfed = data[begin:]
                self._hold(self._half_bytes + len(self._unfed))
                break
            piece = data[begin : begin + step] if begin or step < size else data
            begin += step
            self._feed_piece(piece)
        self._sink.regulate()

    def _feed_piece(self, piece: bytes) -> None:
        rest = self._feed_once(piece)
        if rest is not None:
            self._decline_offer(rest)

    def _feed_once(self, piece: bytes) -> bytes | None:
        """Parse it. Something is returned only after an offer of h2c: what llhttp left unread."""
        self._data = piece
        if not self._raw:
            self._line_from = 0
        stumbled: Exception | None = None
        try:
            self._parser.feed_data(piece)
        except (HttpParserError, HttpParserUpgrade) as error:
            stumbled = error  # seen to outside, so that no exception gets another's context
        if stumbled is not None:
            return self._stumbled(stumbled)
        self._data = b""  # an idle connection would hold on to its last read
        if not self._at_rest:
            self._partly(piece)
        return None

    def resume(self) -> None:
        """There is room again for what was left unparsed."""
        if self._unfed:
            self._feed_in_slices(b"")

    def _partly(self, data: bytes) -> None:
        """A message is half here. Off the fast path: everything that must be counted is, here."""
        if self.deaf:
            return
        limits = self._limits
        if not self.in_body:
            if not self._raw:  # the end of another request may be in it: judged when complete
                self._slack = len(data)
            self._raw += data
            if len(self._raw) - self._slack > limits.head_max_bytes:
                self._refuse("fields-too-large", head_too_large(limits))
            return
        if not self._odd:  # from here on it costs more than an ordinary one
            self._odd = True
            self._raw = bytearray()
        if self._chunked:
            self._extras = max(0, self._extras + len(data))
            if self._extras > limits.chunk_extras_max_bytes:
                self._refuse("malformed", "Chunk extensions and trailers are too long.")
                return
        if self.expecting:
            if self.body_bytes:
                self.expecting = False
            elif self._stream is None:
                self._sink.proceed(False)
        self._hold(self._half_bytes)
        if self._stream is not None:
            self._sink.regulate()

    @property
    def _half_bytes(self) -> int:
        return 0 if self._stream is not None else len(self._body)

    def _hold(self, size: int) -> None:
        """Enter in the ledger what is half here, or here and not parsed."""
        ledger = self._ledger
        growing = size > self._held
        ledger.held_bytes += size - self._held
        self._held = size
        if growing and ledger.held_bytes > self._limits.bodies_max_bytes:
            self._refuse("busy", TOO_MANY_BODIES)

    def continued(self) -> bool:
        """True once, if the sender is to be told 100 (Continue) now."""
        owed = self.expecting and not self.body_bytes
        self.expecting = False
        return owed

    # what ends reading

    def give_up(self, why: str) -> None:
        """No more of this connection is wanted; a body on its way is severed."""
        self.deaf = self._odd = True
        if self._stream is not None:
            self._stream.sever(why)
        self._stream = None
        self._body = b""
        self._raw.clear()
        self._unfed = b""
        if self._held:
            self._ledger.held_bytes -= self._held
            self._held = 0

    def refuse(self, name: str, detail: str) -> None:
        """End reading with an answer, in its turn."""
        self._refuse(name, detail)

    def _refuse(self, name: str, detail: str) -> None:
        self._refuse_with(Refusal(name, detail))

    def _refuse_with(self, refusal: Refusal) -> None:
        if not self.deaf:
            begun = self._stream is not None  # then the handler answers: one request, one answer
            self.give_up(refusal.detail)
            if not begun:
                self._arrived(None, 0, refusal)

    def _stumbled(self, error: Exception) -> bytes | None:
        if self.deaf:
            return None  # "Data after Connection: close": not ours to read
        if isinstance(error, HttpParserUpgrade) and self._reparse:
            return self._data[error.args[0] :]
        if not isinstance(error, HttpParserCallbackError):
            # Where the message begins is known only if no other ends in the same data.
            begun = b"" if self._line_from else bytes(self._raw) + self._data
            self._refuse_with(grumble(str(error), begun))
        elif isinstance(error.__context__, Refusal):
            self._refuse_with(error.__context__)
        else:
            raise error  # a mistake of ours in a callback
        return None

    def _decline_offer(self, rest: bytes | None) -> None:
        """An offer of `Upgrade: h2c` is not taken (RFC 9110 §7.8); llhttp stops reading there.

        Java's HttpClient offers it with its every first request, so this cannot be a refusal. The
        head is parsed again without the offer, and the request keeps its fields as they came.
        """
        while rest is not None:
            fields = self._fields
            head = self._head_without_offer()
            self._parser = HttpRequestParser(self)
            self._begin_anew()
            again = self._fields
            self._feed_once(head)
            again[:] = fields
            if self.deaf:
                self.thrown_away_bytes += len(rest)
                return
            rest = self._feed_once(rest) if rest else None

    def _head_without_offer(self) -> bytes:
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (self._method, self._target, version)]
        lines += [b"%b: %b\r\n" % field for field in self._fields if field[0].lower() != b"upgrade"]
        return b"".join((*lines, b"\r\n"))
