"""What tests of WSGI have in common: a caller in process, with a referee on both sides.

caller = WSGICaller(app)                 `app` behind the middleware, both behind a validator
answer = caller.post("/orders", b"{}", key="k1")
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

Environ = dict[str, Any]
SPOOL = "memory:"


class Answer(NamedTuple):
    status: str
    fields: list[tuple[str, str]]
    body: bytes

    @property
    def code(self) -> int:
        return int(self.status[:3])

    def __getitem__(self, name: Any) -> Any:
        found = [value for field, value in self.fields if field.lower() == str(name).lower()]
        return ", ".join(found)


def by_user(environ: Environ) -> str:
    return str(environ.get("HTTP_X_USER", "ann"))


def environ_of(
    method: str = "POST",
    path: str = "/orders",
    body: bytes = b"",
    *,
    key: str | None = None,
    fields: Mapping[str, str] | None = None,
    **more: Any,
) -> Environ:
    environ: Environ = {}
    setup_testing_defaults(environ)
    path, _, query = path.partition("?")
    environ |= {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "SCRIPT_NAME": "",
        "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "application/json",
    }  # fmt: skip
    if key is not None:
        environ["HTTP_IDEMPOTENCY_KEY"] = key
    for name, value in (fields or {}).items():
        environ["HTTP_" + name.upper().replace("-", "_")] = value
    environ |= more
    for name in [name for name, value in environ.items() if value is None]:
        del environ[name]
    return environ


def call(app: Callable[..., Iterable[bytes]], environ: Environ) -> Answer:
    """As a server does: the head goes out with the first byte; `close` is always called."""
    head: list[Any] = []
    sent: list[bytes] = []

    def start_response(status: str, fields: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        assert not head or exc_info, "start_response twice"
        head[:] = [status, list(fields)]
        return sent.append

    result = app(environ, start_response)
    try:
        for data in result:
            assert head
            sent.append(data)
    finally:
        if hasattr(result, "close"):
            result.close()
    return Answer(head[0], head[1], b"".join(sent))


class Orders:
    """An application with an effect that can be counted: the validator watches what it is given."""

    def __init__(self, answer: Callable[[Environ, Any], Iterable[bytes]]) -> None:
        self.count = 0
        self.bodies: list[bytes] = []
        self.closed = 0
        self._answer = answer

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        self.count += 1
        length = int(environ.get("CONTENT_LENGTH") or 0)
        self.bodies.append(environ["wsgi.input"].read(length))
        return Closing(self, self._answer(environ, start_response))


class Closing:
    def __init__(self, orders: Orders, inner: Iterable[bytes]) -> None:
        self._orders = orders
        self._inner = inner

    def __iter__(self) -> Any:
        return iter(self._inner)

    def close(self) -> None:
        self._orders.closed += 1


def refereed(app: Any, wrap: Callable[[Any], Any]) -> Any:
    """`app` wrapped, with a referee between it and the wrapper, and one before that.

    The inner one does not see `environ["unspool"]`: it holds that a name without a dot is a str's.
    """
    inner = validator(around(app, "unspool.running", "unspool"))
    return validator(wrap(around(inner, "unspool", "unspool.running")))


def around(app: Any, old: str, new: str) -> Any:
    def renamed(environ: Environ, start_response: Any) -> Any:
        if old in environ:
            environ[new] = environ.pop(old)
        return app(environ, start_response)

    return renamed
