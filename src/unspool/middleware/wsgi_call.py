"""One call of a WSGI application, and what came of it (PEP 3333).

    call = WSGICall(app, environ, keep_max_bytes=…)
    response = call.response()      whole; or its beginning, and a `rest` that says that more comes
    call.pour()                     the bytes that come after its beginning
    call.close()                    the application's own `close`; twice does nothing

Nothing reaches the server before `response` has returned, so that the answer is written down before
anybody sees it. An answer that ends within `keep_max_bytes` and `hold_ms` comes whole. A larger or
slower one, one that declares more, and `text/event-stream` stream on from where they were. What is
pushed through `write()` cannot be held back there: beyond `keep_max_bytes` it goes to a temporary
file until the application returns, up to `WRITE_MAX_BYTES`.

The rules of `start_response` are the server's: a second call needs `exc_info`, and is raised again
once a byte of the body was given; fields that no server could write are refused there and then.
Raises what the application raises, having closed what it returned.

Bugs: a generator that is slow to give its *first* bytes holds its answer up until then.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import IO, Any, Final

from ..core.message import Field, Response, Severed

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

HOLD_MS: Final = 1_000
"""How long after its first bytes an answer may take to become whole, before it streams."""
WRITE_MAX_BYTES: Final = 256 * 1024 * 1024
"""What an application may push through `write()`."""
POUR_BYTES: Final = 64 * 1024


class MoreComes:
    """In place of a `Reader`: the rest is read in the thread that has the answer, by `pour`."""

    __slots__ = ()

    async def read(self) -> bytes:
        raise Severed("This body is read in a thread of its server.")

    def close(self) -> None:
        """Its server closes what it iterates over."""


class WSGICall:
    """See the head of this file."""

    def __init__(
        self, app: WSGIApp, environ: Environ, *, keep_max_bytes: int, hold_ms: int = HOLD_MS
    ) -> None:
        self._app = app
        self._environ = environ
        self._keep_max_bytes = keep_max_bytes
        self._hold_s = hold_ms / 1000
        self._status = ""
        self._fields: list[Field] = []
        self._parts: list[bytes] = []
        self._size = 0
        self._began_at = 0.0
        self._written: IO[bytes] | None = None
        self._result: Iterable[bytes] | None = None
        self._left: Iterator[bytes] | None = None
        self._closed = False

    def response(self) -> Response:
        try:
            self._result = self._app(self._environ, self._start_response)
            whole = self._hold()
        except BaseException:
            with contextlib.suppress(Exception):  # what it raised first is what matters
                self.close()
            raise
        return self._made(whole)

    @property
    def untouched(self) -> Iterable[bytes] | None:
        """What the application returned, where nothing of it was read: a server may know it, and
        send a file by itself."""
        return self._result if self._left is None and not self._size else None

    def pour(self) -> Iterator[bytes]:
        """What follows the beginning, to be read once."""
        if self._written is not None:
            self._written.seek(0)
            while data := self._written.read(POUR_BYTES):
                yield data
        assert self._result is not None
        yield from self._result if self._left is None else self._left

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._written is not None:
            self._written.close()
        close = getattr(self._result, "close", None)
        if close is not None:
            close()

    # --- the application's side ---------------------------------------------------------------

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        if exc_info is not None:
            try:
                if self._size:  # a server would have sent the head by now
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._status:
            raise AssertionError("start_response was called twice, and without exc_info")
        fields = [(_bytes(name), _bytes(value)) for name, value in headers]
        for name, value in fields:
            if not name or _ends_a_line(name) or _ends_a_line(value) or b":" in name:
                raise ValueError(f"the field {name!r} cannot be written")
        if not status[:3].isdigit() or not 200 <= int(status[:3]) <= 999 or status[3:4].strip():
            raise ValueError(f"{status!r} is not the status of a final answer")
        _bytes(status)
        self._status, self._fields = status, fields
        return self._write

    def _write(self, data: bytes) -> None:
        self._take(data)
        if self._size <= self._keep_max_bytes:
            return
        if self._size > WRITE_MAX_BYTES:
            raise ValueError(f"more than {WRITE_MAX_BYTES} bytes went through write()")
        if self._written is None:
            self._written = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        self._written.writelines(self._parts)
        self._parts.clear()

    def _take(self, data: bytes) -> None:
        if not self._status:
            raise AssertionError("a body came before start_response was called")
        if not isinstance(data, bytes):
            raise TypeError(f"a body is bytes, and this is {type(data).__name__}")
        if data:
            self._began_at = self._began_at or monotonic()
            self._parts.append(data)
            self._size += len(data)

    def _hold(self) -> bool:
        """Take what comes. True: that was all of it."""
        assert self._result is not None, "the application returned no iterable"
        if self._written is not None or (self._status and self._streams()):
            return False
        self._left = iter(self._result)
        for data in self._left:
            self._take(data)
            if self._streams():
                return False
        if not self._status:
            raise AssertionError("the application returned and had not called start_response")
        return True

    def _streams(self) -> bool:
        if self._size > self._keep_max_bytes:
            return True
        if self._began_at and monotonic() - self._began_at > self._hold_s:
            return True
        for name, value in self._fields:
            lower = name.lower()
            if lower == b"content-type" and value.lower().startswith(b"text/event-stream"):
                return True
            if lower == b"content-length" and value.isdigit():
                return int(value) > self._keep_max_bytes
        return False

    def _made(self, whole: bool) -> Response:
        length = -1
        for name, value in self._fields:
            if name.lower() == b"content-length" and value.isdigit():
                length = int(value)
        fields = [field for field in self._fields if field[0].lower() != b"content-length"]
        body = b"".join(self._parts)
        self._parts.clear()
        reason = self._status[3:].strip().encode("latin-1")
        rest = None if whole else MoreComes()
        return Response(int(self._status[:3]), reason, fields, body, rest, length)


def _bytes(text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"a status or field is a str, and this is {type(text).__name__}")
    return text.encode("latin-1")


def _ends_a_line(text: bytes) -> bool:
    return b"\r" in text or b"\n" in text or b"\0" in text
